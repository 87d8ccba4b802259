"""Whole runs of other tasks than next tokens: classifiers of long documents, masked models."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from kdscale.cache.read.reader import CacheReader
from kdscale.cache.read.subset import known_labels
from kdscale.data.rows.prepared import open_prepared
from kdscale.evaluate.results import read_results
from kdscale.evaluate.schema import Results
from kdscale.store import open_store
from tests.runs import run_kdscale, tiny_config, write_config, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]

CLASSES = ("metals", "rivers", "trees")
WORDS = {
    "metals": "iron copper zinc silver nickel cobalt tin lead",
    "rivers": "danube rhine nile volga amazon congo thames seine",
    "trees": "oak maple birch willow cedar spruce alder larch",
}
COMMON = ["the", "a", "of", "in", "on", "with", "near", "old", "new", "small", "and", "is", "was"]
ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0,
}


def write_documents(path: Path, count: int, seed: int) -> None:
    """Write texts of 10 to 60 words, a few of which tell the class."""
    generator = random.Random(seed)
    with path.open("w") as file:
        for number in range(count):
            label = CLASSES[number % 3]
            words = generator.choices(COMMON, k=generator.randrange(10, 60))
            for word in generator.choices(WORDS[label].split(), k=8):
                words[generator.randrange(len(words))] = word
            record = {"body": f"{number} " + " ".join(words), "topic": label.upper()}
            file.write(json.dumps(record) + "\n")


def classify_config(folder: Path) -> dict[str, Any]:
    train, other = folder / "train.jsonl", folder / "other.jsonl"
    write_documents(train, 240, seed=0)
    write_documents(other, 60, seed=1)
    source = {"kind": "jsonl", "text_field": "body"}
    config = tiny_config(folder / "none", str(folder / "output"))
    config |= {"task": "sequence-classification"}
    config["data"] = {
        "train": {**source, "path": str(train)},
        "evaluate": {"other": {**source, "path": str(other)}},
        "labels": {"field": "topic", "classes": list(CLASSES), "share": 0.5},
        "validation_share": 0.2,
        "tokenizer": {"kind": "train", "vocab_size": 400},
        "seq_len": 64,
        "long_documents": "hierarchical",
        "chunks": {"length": 16, "pooling": "attention"},
        "min_characters": 4,
    }
    training = {
        "global_batch_size": 16,
        "micro_batch_size": 8,
        "optimiser": {"learning_rate": 2e-3},
    }
    config["teacher"] = {
        "model": {"architecture": "bert", "options": ENCODER},
        "training": {**training, "steps": 120, "checkpoint_every": 40},
    }
    config["cache"] = {
        "codec": {"kind": "full"},
        "sequences_per_shard": 64,
        "sequences_per_chunk": 16,
    }
    config["distill"] |= {
        "student": {
            "teacher_layers": [1],
            "width": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2},
        },
        "loss": {"kd_weight": {"kind": "constant", "start": 0.7}},
        "training": {**training, "steps": 100, "log_every": 1, "checkpoint_every": 30},
    }
    return config


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results, str]:
    folder = tmp_path_factory.mktemp("classify")
    config = write_config(folder / "classify.yaml", classify_config(folder))
    code, log = run_kdscale("run", str(config))
    assert code == 0, log[-6000:]
    output = folder / "output"
    return output, read_results(open_store(str(output))), log


def prepared_of(output: Path) -> Any:
    (folder,) = (output / "prepared").iterdir()
    return open_prepared(open_store(str(folder)))


def test_classes_are_on_both_sides_in_the_same_shares(
    classified: tuple[Path, Results, str],
) -> None:
    prepared = prepared_of(classified[0])
    assert prepared.classes == CLASSES
    assert prepared.split("validation").class_counts == {0: 16, 1: 16, 2: 16}
    train = prepared.split("train").class_counts
    assert sum(train.values()) == 192
    assert [train[number] for number in range(3)] == [32] * 3
    assert train[-1] == 96
    assert prepared.split("other").class_counts == {0: 20, 1: 20, 2: 20}


def test_the_cache_covers_rows_without_a_label_too(classified: tuple[Path, Results, str]) -> None:
    (folder,) = (classified[0] / "cache").iterdir()
    reader = CacheReader(open_store(str(folder)))
    assert reader.identity["classes"] == list(CLASSES)
    assert len(reader) == 192
    assert known_labels(reader).sum() == 96
    rows = reader.read(np.arange(len(reader)))
    assert rows.rows.labels is not None
    assert ((rows.rows.labels[:, 0] >= 0) == known_labels(reader)).all()


def test_the_baseline_learns_from_labelled_rows_alone(
    classified: tuple[Path, Results, str],
) -> None:
    pools = {}
    for name in ("distill", "baseline"):
        lines = (classified[0] / "metrics" / f"{name}.jsonl").read_text().splitlines()
        pools[name] = json.loads(lines[-1])["curriculum/pool_size"]
    assert pools == {"distill": 192, "baseline": 96}


def test_the_student_is_told_apart_from_its_baseline(classified: tuple[Path, Results, str]) -> None:
    output, results, log = classified
    assert results["task"] == "sequence-classification"
    assert results["classes"] == list(CLASSES)
    found = {name: m["domains"]["other"] for name, m in results["models"].items()}
    assert found["teacher"]["f1_macro"] > 0.8
    assert found["student"]["f1_macro"] > 0.5
    for metrics in found.values():
        low, high = metrics["intervals"]["f1_macro"] or (0, 0)
        assert low <= metrics["f1_macro"] <= high
        assert np.sum(metrics["confusion"]) == 60
    assert found["student"]["agreement_top1"] > 0.5
    assert "reaches a macro F1 of" in log
    page = (output / "report" / "index.html").read_text()
    assert "predictions of the student by label" in page
    card = (output / "student" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert "text-classification" in card


def test_the_published_student_gives_the_figures_of_the_report(
    classified: tuple[Path, Results, str],
) -> None:
    from kdscale.models.forward import compute_logits, row_tensors
    from kdscale.models.load import load_model

    output, results, _ = classified
    prepared = prepared_of(output)
    table = prepared.split("other")
    batch = row_tensors(table.take(np.arange(len(table))), torch.device("cpu"))
    with torch.no_grad():
        model = load_model(output / "student").eval()
        logits = compute_logits(model, batch.ids, batch.segments, 3)[:, 0]
        accuracy = (logits.argmax(-1) == batch.labels[:, 0]).float().mean().item()
    score = results["models"]["student"]["domains"]["other"]
    assert accuracy == pytest.approx(score["accuracy"], abs=1e-6)
    # One chunk, as anyone would use the folder.
    plain = AutoModelForSequenceClassification.from_pretrained(output / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(output / "student")
    text = "the old oak and a small birch near the willow"
    ids = torch.tensor([[0, *tokenizer(text, add_special_tokens=False).input_ids, 0]])[:, :16]
    mine = torch.zeros(1, 64, dtype=torch.int64)
    segments = torch.zeros_like(mine)
    mine[0, : ids.shape[1]], segments[0, : ids.shape[1]] = ids[0], 1
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        assert torch.allclose(compute_logits(model, mine, segments, 3)[0, 0], expected, atol=1e-5)


@pytest.mark.slow
def test_a_masked_model_is_distilled_with_its_hidden_states(tmp_path: Path) -> None:
    """DistilBERT's recipe: masked-LM loss, KL to the teacher, cosine of hidden states."""
    corpus = write_corpus(tmp_path / "corpus")
    config = tiny_config(corpus, str(tmp_path / "output"), task="masked-lm")
    config["data"]["masking"] = {"copies": 2}
    config["teacher"]["model"] = {"architecture": "bert", "options": ENCODER}
    config["distill"] |= {
        "targets": "online",
        "online": {"hidden": {"kind": "cosine", "weight": 0.2}},
        "student": {"teacher_layers": [0]},
        "loss": {"kd_weight": {"kind": "constant", "start": 0.7}},
    }
    code, log = run_kdscale("run", str(write_config(tmp_path / "masked.yaml", config)))
    assert code == 0, log[-6000:]
    output = tmp_path / "output"
    results = read_results(open_store(str(output)))
    losses = {name: m["domains"]["validation"]["loss"] for name, m in results["models"].items()}
    assert losses["teacher"] < np.log(512)
    assert losses["student"] < np.log(512)
    lines = (output / "metrics" / "distill.jsonl").read_text().splitlines()
    assert "train/hidden" in json.loads(lines[-1])
    assert AutoModelForMaskedLM.from_pretrained(output / "student").config.num_hidden_layers == 1
