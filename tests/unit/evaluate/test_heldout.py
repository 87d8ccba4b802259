"""Tasks out of held-out rows: what they ask, and that they always ask the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from kdscale.errors import KdscaleError
from kdscale.evaluate.heldout import (
    cloze_items,
    last_word_items,
    passages,
    task_names,
    write_tasks,
)
from kdscale.run.finished_run import FinishedRun
from tests.unit.evaluate.finished import make_finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return FinishedRun(make_finished_run(tmp_path_factory.mktemp("run")))


def test_passages_are_text_of_the_corpus(run: FinishedRun) -> None:
    prepared = run.prepared()
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder())
    found = list(passages(prepared, "validation", tokenizer))
    corpus = "\n".join(
        path.read_text(encoding="utf-8")
        for path in Path(run.config.data.train.path or "").iterdir()
    )
    assert len(found) > 20
    assert all(text in corpus for text in found)
    assert all(len(text.split()) >= 20 for text in found)


def test_the_true_ending_is_among_four_and_follows_its_context() -> None:
    texts = [" ".join(f"{name}{n}" for n in range(24)) for name in "abcdef"]
    items = cloze_items(texts, np.random.default_rng(0))
    assert len(items) == 6
    for text, item in zip(texts, items, strict=True):
        assert text.startswith(item["context"] + item["choices"][item["label"]])
        assert len(set(item["choices"])) == 4
        others = [c for n, c in enumerate(item["choices"]) if n != item["label"]]
        assert not any(choice in text for choice in others)
        # The last word may have been cut by the row's end.
        assert text.split()[-1] not in item["choices"][item["label"]].split()
    assert len({item["label"] for item in items}) > 1
    assert cloze_items(texts[:3], np.random.default_rng(0)) == []


def test_the_last_word_has_ended_and_stands_behind_one_space() -> None:
    (item,) = last_word_items(["one two three  four five(six) seve"])
    assert item == {"context": "one two three  four", "word": "five"}
    assert list(last_word_items(["nospaces"])) == []


def test_tasks_are_the_same_every_time(run: FinishedRun, tmp_path: Path) -> None:
    prepared = run.prepared()
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder())
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tasks(prepared, "validation", tokenizer, tmp_path / name)
    for task in task_names():
        first, second = ((tmp_path / n / f"{task}.jsonl").read_text() for n in "ab")
        assert first == second
        assert len([json.loads(line) for line in first.splitlines()]) >= 8
    with pytest.raises(KdscaleError, match="no split 'other'"):
        write_tasks(prepared, "other", tokenizer, tmp_path)
