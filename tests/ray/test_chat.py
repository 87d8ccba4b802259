"""A whole run on conversations: the answers alone are targets of teacher, cache and student."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from kdscale.cache.read.reader import CacheReader
from kdscale.data.rows.prepared import open_prepared
from kdscale.evaluate.results import read_results
from kdscale.store import open_store
from tests.runs import run_kdscale, tiny_config, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

RIVERS = {"Rhine": "Basel", "Danube": "Vienna", "Seine": "Paris", "Thames": "London"}
WORDS = ["please", "tell", "me", "now", "kindly", "once", "again"]
END = "<|im_end|>"


def write_talks(path: Path, count: int, seed: int) -> None:
    """Write questions whose answers can be learned, between words that cannot."""
    generator = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            river, city = generator.choice(list(RIVERS.items()))
            noise = " ".join(generator.choices(WORDS, k=4))
            code = generator.randrange(10**6)
            messages = [
                {"role": "user", "content": f"{noise} {code}: where is the {river}?"},
                {"role": "assistant", "content": f"The {river} is in {city}."},
            ]
            if generator.random() < 0.4:
                messages += [
                    {"role": "user", "content": f"And the other {code + 1}?"},
                    {"role": "assistant", "content": "There is no other one."},
                ]
            file.write(json.dumps({"messages": messages}) + "\n")


def chat_config(folder: Path) -> dict[str, Any]:
    """Return the config of a mixture of two files, of which the second is twice too long."""
    write_talks(folder / "first.jsonl", 500, seed=0)
    write_talks(folder / "second.jsonl", 1000, seed=1)
    config = tiny_config(folder / "none", str(folder / "output"))
    config["data"] = {
        "train": [
            {"kind": "jsonl", "path": str(folder / "first.jsonl")},
            {"kind": "jsonl", "path": str(folder / "second.jsonl")},
        ],
        "chat": {},
        "validation_share": 0.1,
        "tokenizer": {"kind": "train", "vocab_size": 400},
        "seq_len": 96,
        "long_documents": "drop",
        "min_characters": 4,
        "evaluation_sequences": 32,
    }
    config["teacher"]["training"]["steps"] = 200
    config["cache"]["sequences"] = None
    config["distill"]["training"]["steps"] = 100
    return config


def test_a_run_learns_the_answers(tmp_path: Path) -> None:
    config = write_config(tmp_path / "chat.yaml", chat_config(tmp_path))
    code, log = run_kdscale("run", str(config))
    assert code == 0, log[-6000:]
    output = tmp_path / "output"
    (folder,) = (output / "prepared").iterdir()
    prepared = open_prepared(open_store(str(folder)))
    first, second = prepared.manifest["sources"]["train"]["mixture"]
    assert (first["kept"], first["usable"]) == (500, 500)
    assert second["usable"] == 1000
    assert second["bytes"] == pytest.approx(first["bytes"], rel=0.01)
    assert f"{second['kept']} of 1,000 documents kept" in log

    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder())
    (cache,) = (output / "cache").iterdir()
    reader = CacheReader(open_store(str(cache)))
    cached = reader.read(np.arange(len(reader))).rows
    assert sorted(map(bytes, cached.sample_ids)) == sorted(
        map(bytes, prepared.split("train").sample_ids)
    )
    answers = {f"The {river} is in {city}." for river, city in RIVERS.items()}
    answers.add("There is no other one.")
    for ids, mask in zip(cached.input_ids, cached.loss_mask, strict=True):
        said = tokenizer.decode(ids[1:][mask[:-1]])
        assert set(said.removesuffix(END).split(END)) <= answers
    assert reader.statistics.length.tolist() == cached.loss_mask.sum(axis=1).tolist()

    # What is asked is noise: a loss over it could never come down so far.
    results = read_results(open_store(str(output)))
    assert results["chat"] == "answers are marked by the template itself"
    assert f"chat template: {results['chat']}" in log
    models = results["models"]
    assert models["teacher"]["domains"]["validation"]["loss"] < 0.3
    student = AutoModelForCausalLM.from_pretrained(output / "student")
    theirs = AutoTokenizer.from_pretrained(output / "student")
    asked = [{"role": "user", "content": "please tell me now once 77: where is the Rhine?"}]
    ids = theirs.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    whole = student.generate(**ids, max_new_tokens=30, do_sample=False)[0]
    said = theirs.decode(whole[ids["input_ids"].shape[1] :])
    assert said.endswith(END), "it stops by itself"
