"""Files of a folder that are not read are named and counted."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kdscale.config.data import DataConfig, SourceConfig
from kdscale.data.documents import Documents, clean_batch
from kdscale.data.prepare_checkpoint import all_parts, read_ends
from kdscale.data.preview import preview
from kdscale.data.sources.corpus import corpus_identity, find_corpus
from kdscale.data.sources.folders import describe_unread
from kdscale.data.sources.readers import read_shard
from kdscale.errors import KdscaleError
from kdscale.store import open_store
from tests.unit.data.sources.files import write

LINE = b'{"text": "the river runs past the old mill"}\n'


def unread(source: SourceConfig) -> list[tuple[dict[str, int], dict[str, list[str]]]]:
    return [(each.counts, each.examples) for each in find_corpus(source).unread]


def test_all_that_is_not_read_is_named(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "set",
        {
            "a.jsonl": LINE,
            "sub/B.JSON.GZ": LINE,
            "c.ndjson.zst": LINE,
            "e.jsonl": b"",
            "README.md": b"x",
            "sub/x.csv": b"x",
            "y.yaml": b"x",
            "z.txt": b"x",
            ".git/config": b"x",
            "sub/.h.jsonl": LINE,
        },
    )
    write(tmp_path / "other", {"f.jsonl": LINE})
    (folder / "broken.jsonl").symlink_to(tmp_path / "nothing")
    (folder / "linked").symlink_to(tmp_path / "other")
    (folder / "file.jsonl").symlink_to(tmp_path / "other" / "f.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(folder / "s.jsonl"))
    source = SourceConfig(kind="jsonl", path=str(folder))
    corpus = find_corpus(source)
    keys = ["a.jsonl", "c.ndjson.zst", "e.jsonl", "file.jsonl", "sub/B.JSON.GZ"]
    assert [shard.key for shard in corpus.inputs] == keys
    assert corpus_identity(source)["files"] == 5
    [found] = corpus.unread
    assert found.place == str(folder)
    assert found.counts == {
        "hidden": 2,
        "of other kinds": 4,
        "behind a broken link": 1,
        "empty": 1,
        "behind a link to a folder": 1,
        "not a regular file": 2,
    }
    assert found.examples["of other kinds"] == ["README.md", "sub/x.csv", "y.yaml"]
    assert found.examples["behind a link to a folder"] == ["linked"]
    text = describe_unread(found.counts, found.examples)
    assert text.startswith("2 hidden (.git/config, sub/.h.jsonl), 4 of other kinds (README.md, ")
    assert "sub/x.csv, y.yaml, ...), " in text


def test_a_glob_or_file_says_itself_what_is_to_be_read(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": LINE, "b.md": b"x", "sub/c.jsonl": LINE, "data": LINE, "e": b""})
    assert unread(SourceConfig(kind="jsonl", path=f"{tmp_path}/*.jsonl")) == []
    assert unread(SourceConfig(kind="jsonl", path=f"{tmp_path}/**/*")) == [
        ({"of other kinds": 3}, {"of other kinds": ["b.md", "data", "e"]})
    ]
    # A file that is named is what the `kind` says, whatever its name.
    source = SourceConfig(kind="jsonl", path=str(tmp_path / "data"))
    [shard] = find_corpus(source).inputs
    assert [document.name for document in read_shard(shard, source)] == ["data#0"]
    assert unread(SourceConfig(kind="jsonl", path=str(tmp_path / "e"))) == [
        ({"empty": 1}, {"empty": ["e"]})
    ]


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path) -> None:
    write(tmp_path, {"x.jsonl/a.jsonl": LINE})
    for path in (tmp_path, tmp_path / "x.jsonl"):
        assert len(find_corpus(SourceConfig(kind="jsonl", path=str(path))).inputs) == 1


def test_where_nothing_is_read_what_is_there_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a.md": b"x", ".b.jsonl": LINE})
    with pytest.raises(KdscaleError, match=r"1 hidden \(.b.jsonl\), 1 of other kinds \(a.md\)"):
        find_corpus(SourceConfig(kind="jsonl", path=str(tmp_path)))
    with pytest.raises(KdscaleError, match="holds no jsonl files: no files at all"):
        find_corpus(SourceConfig(kind="jsonl", path=str(tmp_path / "none")))


def test_stores_that_are_not_here() -> None:
    store = open_store("memory://test-folders/set")
    for key, data in {"a.jsonl": LINE, "b.md": b"x", "e.jsonl": b"", ".h": b"x"}.items():
        store.put(key, data)
    [(counts, _)] = unread(SourceConfig(kind="jsonl", path="memory://test-folders/set"))
    assert counts == {"hidden": 1, "of other kinds": 1, "empty": 1}


def test_a_preview_names_what_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": LINE * 3, "b.md": b"x"})
    fields = {"train": {"kind": "jsonl", "path": str(tmp_path)}, "tokenizer": {"vocab_size": 300}}
    found = preview(DataConfig.model_validate(fields), "causal-lm")
    assert found.unread == [(str(tmp_path), "1 of other kinds (b.md)")]


def clean(folder: Path, work: Path, **fields: Any) -> Documents:
    """Read a folder as a prepare does, in this process."""
    config = DataConfig.model_validate({"train": {"path": str(folder), **fields}})
    corpus, store = find_corpus(*config.sources["train"]), open_store(str(work))
    cleaned = store.child("train/documents")
    for number, shard in enumerate(corpus.inputs):
        items = pa.Table.from_pylist([{"number": number, "inputs": [shard.__dict__]}])
        list(clean_batch(items, work=cleaned, sources=corpus.sources, config=config))
    return Documents(store, "train", all_parts(read_ends(cleaned), None), here=True)


def test_the_first_documents_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "set",
        {"a.jsonl": LINE * 3 + b"{\n" + LINE, "b.jsonl": LINE, "c.jsonl": b"[1\n".join([LINE] * 5)},
    )
    found = clean(folder, tmp_path / "work", kind="jsonl")
    assert (len(found), found.table().status.sum()) == (15, 5)
    assert found.table().undecodable == ["a.jsonl#3", "c.jsonl#1", "c.jsonl#3"]
    texts = write(
        tmp_path / "texts", {"a.txt": b"text " * 9, "b.bin": b"\xff\x00", "c.md": b"\xe9"}
    )
    found = clean(texts, tmp_path / "other", kind="text")
    assert found.table().undecodable == ["b.bin", "c.md"]


def test_records_are_named_by_json_that_any_manifest_takes(tmp_path: Path) -> None:
    write(tmp_path, {"a\udce9.md": b"x", "b.jsonl": LINE})
    [found] = find_corpus(SourceConfig(kind="jsonl", path=str(tmp_path))).unread
    assert json.loads(json.dumps(found.as_dict()))["examples"]["of other kinds"] == ["a\\udce9.md"]
