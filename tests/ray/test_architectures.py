"""Whole runs, capture to evaluation, of teachers and students of many architectures.

What a run says of its models is what transformers says of every document by itself.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.data.tokenizer import train_tokenizer
from kdscale.evaluate.results import read_results
from kdscale.store import open_store
from tests.architectures import strengthen, tiny_model
from tests.runs import read_metrics, run_kdscale, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]

# Windows of 16 where they have some, of rows of 64; mixtures, tied heads, caps, scales, biases.
PACKED = (
    *("llama", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "qwen3_moe", "mixtral"),
    *("gpt_oss", "gpt2", "opt", "falcon"),
)
ONE_DOCUMENT_A_ROW = ("bloom", "mamba")
WORDS = "the of and to in is that for it as was with be by on not he his at are"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 60, 300)
    return [" ".join(generator.choice(WORDS.split(), length)) for length in lengths]


def config_of(kind: str, folder: Path, texts: list[str]) -> dict[str, Any]:
    """Write a corpus and a teacher of the architecture; return a run from them."""
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    info = train_tokenizer(texts, 300, folder / "teacher")
    strengthen(tiny_model(kind, vocab_size=info.vocab_size)).save_pretrained(folder / "teacher")
    return {
        "name": kind,
        "output": str(folder / "run"),
        "data": {
            "train": {"kind": "jsonl", "path": str(folder / "corpus.jsonl")},
            "seq_len": 64,
            "tokenizer": {"kind": "teacher"},
            "validation_share": 0.2,
        },
        "teacher": {"load": str(folder / "teacher")},
        "cache": {"sequences": 64},
        "distill": {
            "student": {"load": str(folder / "teacher")},
            "loss": {"kd_weight": 1.0},
            "baseline": False,
            "cache_folder": str(folder / "chunks"),
            "training": {
                "steps": 3,
                "global_batch_size": 8,
                "micro_batch_size": 4,
                "log_every": 1,
                "dropout": 0.0,
                "optimiser": {"learning_rate": 1e-3},
            },
        },
        "tracking": {"wandb": "disabled"},
    }


@pytest.mark.parametrize("kind", [*PACKED, *ONE_DOCUMENT_A_ROW])
def test_a_run_says_of_its_models_what_transformers_says(
    kind: str, texts: list[str], tmp_path: Path
) -> None:
    config = config_of(kind, tmp_path, texts)
    path = write_config(tmp_path / "run.yaml", config)
    if kind in ONE_DOCUMENT_A_ROW:
        code, log = run_kdscale("run", str(path))
        assert code == 2
        assert "data.pack" in log
        config["data"]["pack"] = False
        path = write_config(path, config)
    code, log = run_kdscale("run", str(path))
    assert code == 0, log[-6000:]

    output = tmp_path / "run"
    (prepared,) = (output / "prepared").iterdir()
    rows = open_prepared(open_store(str(prepared)))
    models = read_results(open_store(str(output)))["models"]
    for name, folder in (("teacher", tmp_path / "teacher"), ("student", output / "student")):
        expected = loss_alone(folder, rows)
        found = models[name]["domains"]["validation"]["loss"]
        assert found == pytest.approx(expected, rel=2e-5), name
    # The student starts as its teacher: what is left is the noise of a sampled target.
    first = read_metrics((output / "metrics" / "distill.jsonl").read_bytes())[0]
    assert abs(first["train/kl"]) < 0.05 * first["train/ce_loss"]


@torch.no_grad()
def loss_alone(folder: Path, prepared: Prepared) -> float:
    """Return the mean loss over validation targets, each document run by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    table = prepared.split("validation")
    rows = table.take(np.arange(len(table)))
    total, count = 0.0, 0
    for ids, segments, mask in zip(rows.input_ids, rows.segment_ids, rows.loss_mask, strict=True):
        for segment in np.unique(segments[mask.astype(bool)]):
            here = segments == segment
            tokens = torch.from_numpy(ids[here].astype(np.int64))
            log_probs = model(tokens[None], use_cache=False).logits[0].double().log_softmax(-1)
            for at in np.flatnonzero(mask[here]):
                total -= float(log_probs[at, tokens[at + 1]])
                count += 1
    return total / count
