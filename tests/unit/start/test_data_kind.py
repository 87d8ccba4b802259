"""Kind and fields of data are found by the names of files and their first records."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdscale.config.task import Task
from kdscale.errors import KdscaleError
from kdscale.start.data_kind import find_data

WORDS = "some words of a text that is longer than its label"
ROWS: list[dict[str, Any]] = [
    {"id": n, "title": f"t{n}", "words": f"{WORDS} {n}", "topic": "ab"[n % 2]} for n in range(8)
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("write", "name", "kind"),
    [
        (write_lines, "a.jsonl", "jsonl"),
        (write_lines, "a.json", "jsonl"),
        (write_csv, "a.csv", "csv"),
        (write_parquet, "a.parquet", "parquet"),
    ],
)
@pytest.mark.parametrize("whole", [False, True], ids=["file", "folder"])
def test_records_of_every_kind(
    write: Any, name: str, kind: str, whole: bool, tmp_path: Path
) -> None:
    path = write(tmp_path / name, ROWS)
    place = str(tmp_path if whole else path)
    found = find_data(place, "causal-lm")
    assert found.source == {"kind": kind, "path": place, "text_field": "words"}
    assert found.texts == [row["words"] for row in ROWS]
    labelled = find_data(place, "sequence-classification")
    assert labelled.label == "topic"


def test_a_usual_name_wins_over_a_longer_text(tmp_path: Path) -> None:
    rows = [{"text": "short", "notes": WORDS}] * 3
    found = find_data(str(write_lines(tmp_path / "a.jsonl", rows)), "causal-lm")
    assert found.source == {"kind": "jsonl", "path": str(tmp_path / "a.jsonl")}


@pytest.mark.parametrize(
    ("row", "chat"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, {"field": "messages"}),
        ({"conversations": [{"from": "human", "value": "hi"}]}, {"field": "conversations"}),
        ({"prompt": "hi", "completion": "ho"}, {"prompt": "prompt", "completion": "completion"}),
    ],
)
def test_conversations(row: dict[str, Any], chat: dict[str, str], tmp_path: Path) -> None:
    assert find_data(str(write_lines(tmp_path / "a.jsonl", [row])), "causal-lm").chat == chat


def test_text_files_of_the_commonest_ending(tmp_path: Path) -> None:
    for name in ("a.md", "b/c.md", "d.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(WORDS)
    found = find_data(str(tmp_path), "causal-lm")
    assert found.source == {"kind": "text", "path": f"{tmp_path}/**/*.md"}
    assert found.texts == [WORDS] * 2
    assert found.notes == ["Only the 2 files .md are read, not those of .bin."]
    assert find_data(str(tmp_path / "a.md"), "causal-lm").source["path"] == str(tmp_path / "a.md")


def test_compressed_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"content": WORDS}).encode()))
    assert find_data(str(path), "causal-lm").source["text_field"] == "content"


def test_files_of_other_kinds_beside_it_are_told(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "README.md").write_text(WORDS)
    found = find_data(str(tmp_path), "causal-lm")
    assert found.notes == [f"Of {tmp_path}, only the 1 jsonl files are read."]


def test_a_table_with_other_separators_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;one\n2;two\n")
    with pytest.raises(KdscaleError, match="seems to be separated by ';'"):
        find_data(str(tmp_path / "a.csv"), "causal-lm")


@pytest.mark.parametrize(
    ("rows", "task", "words"),
    [
        ([{"id": 1, "score": 2}], "causal-lm", "No field of .* holds text: it has id, score"),
        ([{"text": "a"}] * 4, "sequence-classification", "No field holds the class"),
        ([], "causal-lm", "holds no record that can be read"),
    ],
)
def test_what_holds_no_text_or_class_is_refused(
    rows: list[dict[str, Any]], task: Task, words: str, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(KdscaleError, match=words):
        find_data(str(path), task)


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent", tmp_path / "*.jsonl"):
        with pytest.raises(KdscaleError, match="There is no file to read"):
            find_data(str(place), "causal-lm")
    (tmp_path / "a.parquet").write_text("no such thing")
    with pytest.raises(KdscaleError, match="not a Parquet file"):
        find_data(str(tmp_path), "causal-lm")
