"""Sets that are no distributions, or belong to other tokens, are refused; nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.importing.imported import import_set, run
from tests.unit.importing.sets import (
    Source,
    column_rows,
    make_source,
    write_distillkit,
    write_json,
    write_parquet,
)
from tests.unit.importing.test_distillkit import PUBLISHED, RECOMMENDED

K = 20
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def source() -> Source:
    return make_source((30, 12, 41, 25))


class Refusal:
    """Imports that are refused with an error, and leave nothing behind."""

    def __init__(self, folder: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._tokenizer, self._capsys = folder, tokenizer, capsys

    def __call__(self, place: Path | str, *options: str) -> str:
        """Import, and return the error."""
        self._capsys.readouterr()
        out = self._folder / "out"
        common = ("--teacher", "a/b", "--tokenizer", str(self._tokenizer))
        assert run("import", str(place), str(out), *common, *options) == 2
        assert not out.exists()
        error = self._capsys.readouterr().err
        assert "\nfix: " in error
        assert "Traceback" not in error
        return error


@pytest.fixture
def refused(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, tokenizer, capsys)


def _set(rows: Rows, name: str, value: Any, row: int = 2, at: int = 7, place: int = 3) -> None:
    rows[row][name][at][place] = value


CHANGES: dict[str, tuple[Callable[[Rows], Any], str]] = {
    "an id beyond the vocabulary": (
        lambda rows: _set(rows, "top_ids", 280),
        "record 2: the distribution of token 8 is id 280, and the tokenizer has the ids 0 to 279",
    ),
    "a negative id": (
        lambda rows: _set(rows, "top_ids", -7),
        "record 2: the distribution of token 8 is id -7",
    ),
    "a token beyond the vocabulary": (
        lambda rows: rows[1]["input_ids"].__setitem__(5, 999),
        "record 1: token 5 is id 999",
    ),
    "an id twice": (
        lambda rows: _set(rows, "top_ids", rows[2]["top_ids"][7][0]),
        "record 2: the distribution of token 8 lists id",
    ),
    "no number": (
        lambda rows: _set(rows, "top_logprobs", float("nan")),
        "record 2: the distribution of token 8 gives id",
    ),
    "an infinite value": (
        lambda rows: _set(rows, "top_logprobs", float("inf")),
        "record 2: the distribution of token 8 gives id",
    ),
    "a mass above 1": (
        lambda rows: _set(rows, "top_logprobs", 0.5),
        "record 2: the distribution of token 8 has a mass of 2.",
    ),
    "raw logits": (
        lambda rows: [
            row.update(top_logprobs=(np.array(row["top_logprobs"]) + 12).tolist()) for row in rows
        ],
        "If these are raw logits, give --values logits",
    ),
    "more ids than values": (
        lambda rows: rows[2]["top_ids"][7].append(5),
        "record 2: 21 ids and 20 values at entry 7",
    ),
    "more entries than tokens": (
        lambda rows: rows[0]["input_ids"].pop(),
        "record 0: 30 entries for 29 tokens",
    ),
    "text in place of tokens": (
        lambda rows: rows[0].update(input_ids=["the"] * 30),
        "record 0: the column 'input_ids' (list) holds no list of numbers",
    ),
    "no depth": (
        lambda rows: rows[0].update(top_ids=list(range(30))),
        "record 0: the column 'top_ids' (list) holds no list of numbers",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_bad_records(tmp_path: Path, source: Source, refused: Refusal, what: str) -> None:
    rows = column_rows(source, K)
    change, expected = CHANGES[what]
    change(rows)
    assert expected in refused(write_json(tmp_path / "set.jsonl", rows))


def test_probabilities_are_told_and_not_guessed(
    tmp_path: Path, source: Source, refused: Refusal
) -> None:
    rows = column_rows(source, K)
    for row in rows:
        row["top_logprobs"] = np.exp(row["top_logprobs"]).tolist()
    assert "if probabilities, --values probs" in refused(write_json(tmp_path / "set.jsonl", rows))


def test_nothing_to_read(tmp_path: Path, source: Source, refused: Refusal) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    assert "holds no file of a set" in refused(folder)
    (folder / "notes.txt").write_text("later")
    assert "holds no file of a set" in refused(folder)
    (folder / "data.parquet").write_text("")
    assert "cannot be read after row 0" in refused(folder)
    (folder / "data.parquet").write_text("no Parquet")
    assert "cannot be read" in refused(folder)
    whole = write_parquet(folder / "data.parquet", column_rows(source, K)).read_bytes()
    (folder / "data.parquet").write_bytes(whole[:-200])
    assert "cannot be read" in refused(folder)
    write_parquet(folder / "data.parquet", [{"text": "a", "label": 3}])
    assert "no layout that is known here. Its columns: text, label." in refused(folder)
    assert "Roles are tokens" in refused(folder, "--column", "tokens=words")
    (folder / "data.parquet").unlink()
    write_json(folder / "set.jsonl", [{"input_ids": [3], "top_ids": [], "top_logprobs": []}])
    assert "has 1 sequences and no target" in refused(folder)
    (folder / "set.jsonl").write_text("[1, 2]\n")
    assert "no JSON object" in refused(folder)


def test_columns_of_other_names(tmp_path: Path, tokenizer: Path, source: Source) -> None:
    rows = [
        {"a": row["input_ids"], "b": row["top_ids"], "c": row["top_logprobs"]}
        for row in column_rows(source, K)
    ]
    path = write_parquet(tmp_path / "set.parquet", rows)
    options = [o for pair in ("tokens=a", "ids=b", "values=c") for o in ("--column", pair)]
    assert len(import_set(path, tmp_path / "out", tokenizer, *options).reader) == 3


@pytest.mark.parametrize(("align", "moved", "fix"), [("own", "+1", "next"), ("next", "-1", "own")])
def test_a_set_that_is_off_by_one(
    tmp_path: Path, tokenizer: Path, source: Source, refused: Refusal,
    align: str, moved: str, fix: str,
) -> None:  # fmt: skip
    """As many entries as tokens, read as about the wrong one."""
    rows = column_rows(source, K)
    if align == "next":
        # About their own token; the first has something in place of nothing.
        for row in rows:
            for name in ("top_ids", "top_logprobs"):
                row[name] = [row[name][0], *row[name][:-1]]
    path = write_json(tmp_path / "set.jsonl", rows)
    error = refused(path, "--align", align)
    assert f"fit the tokens better when they are moved by {moved}" in error
    assert f"Give --align {fix}" in error
    assert "mean log-probability" in error
    assert len(import_set(path, tmp_path / "right", tokenizer, "--align", fix).reader) > 0
    options = ("--align", align, "--allow-misaligned")
    assert len(import_set(path, tmp_path / "wrong", tokenizer, *options).reader) > 0


def test_another_compression_config(tmp_path: Path, source: Source, refused: Refusal) -> None:
    folder = tmp_path / "set"
    write_distillkit(folder, source, RECOMMENDED)
    given = folder / "compression_config.yaml"

    def config(**changes: Any) -> None:
        given.write_text(json.dumps(RECOMMENDED | changes))

    config(k=50)
    assert "numbers a position, and the compression config gives" in refused(folder)
    config(exact_k=17)
    assert "numbers a position" in refused(folder)
    config(d=1000)
    assert "numbers a position" in refused(folder)
    # As wide, and of other values.
    config(exact_dtype="float16")
    assert "error:" in refused(folder)
    config(exact_k="many")
    assert "is no compression config of DistillKit: exact_k" in refused(folder)
    config(exact_k=90)
    assert "hold more than k values" in refused(folder)
    given.write_text(json.dumps({"vocab_size": 280, "k": 9, "exact_k": 9, "polynomial_degree": 2}))
    assert "is that of another layout" in refused(folder)
    given.write_text("- 1")
    assert "is no mapping" in refused(folder)
    given.unlink()
    assert "there is no compression config" in refused(folder)
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps({"logprob_compressor": RECOMMENDED | {"delta_encoding": True}}))
    assert "error:" in refused(folder, "--compression", str(other))
    assert PUBLISHED["delta_encoding"]


def test_no_tokenizer(tmp_path: Path, source: Source, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_json(tmp_path / "set.jsonl", column_rows(source, K))
    out = str(tmp_path / "out")
    assert run("import", str(path), out, "--teacher", "a/b", "--tokenizer", "./none") == 2
    assert "--tokenizer FOLDER" in capsys.readouterr().err
    assert run("import", str(path), out, "--teacher", "./none") == 2
    assert "The teacher's folder './none' does not exist" in capsys.readouterr().err
