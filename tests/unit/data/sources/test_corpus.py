"""Inputs of each kind of source, and the documents in them."""

import gzip
import http.server
import importlib.metadata
import json
import os
import platform
import sysconfig
import threading
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdscale.config.chat import ChatConfig
from kdscale.config.data import SourceConfig
from kdscale.data.chat.messages import Conversation, Message, dump
from kdscale.data.sources.corpus import Corpus, corpus_identity, find_corpus
from kdscale.data.sources.folders import glob_pattern
from kdscale.data.sources.opening import RANGE_BYTES
from kdscale.data.sources.readers import long_description, read_shard
from kdscale.errors import KdscaleError
from kdscale.store import open_store, upload_folder
from tests.unit.data.sources.files import write


def documents(source: SourceConfig) -> list[tuple[str, Any]]:
    return [d[:2] for shard in find_corpus(source).inputs for d in read_shard(shard, source)]


def labels(source: SourceConfig, field: str) -> list[str | None]:
    inputs = find_corpus(source).inputs
    return [d.label for shard in inputs for d in read_shard(shard, source, field)]


def names(corpus: Corpus) -> list[str]:
    return [shard.name for shard in corpus.inputs]


def json_lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_the_standard_library_is_a_module_a_document() -> None:
    source = SourceConfig(kind="python-stdlib")
    corpus = find_corpus(source)
    assert corpus.local
    assert names(corpus) == sorted(names(corpus))
    assert len(set(names(corpus))) == len(corpus.inputs) > 500
    assert not any("site-packages" in name for name in names(corpus))
    shard = next(shard for shard in corpus.inputs if shard.name == "json/decoder.py")
    [(name, raw, _)] = read_shard(shard, source)
    path = Path(sysconfig.get_path("stdlib"), "json", "decoder.py")
    assert (name, raw) == ("json/decoder.py", path.read_bytes())
    assert corpus_identity(source) == {"python": platform.python_version()}


def test_the_docs_are_the_prose_of_the_installed_packages() -> None:
    source = SourceConfig(kind="python-docs")
    found = dict(documents(source))
    assert list(found) == sorted(found)
    [metadata] = [name for name in found if name.startswith("numpy/") and "METADATA" in name]
    assert b"fundamental package for scientific computing" in found[metadata]
    assert not found[metadata].startswith(b"Metadata-Version")
    suffixes = {Path(name).suffix.lower() for name in found if not name.endswith("METADATA")}
    assert suffixes <= {".md", ".rst", ".txt", ""}
    assert f"numpy=={importlib.metadata.version('numpy')}" in corpus_identity(source)["packages"]


def test_a_long_description_begins_after_the_headers() -> None:
    assert long_description(b"Name: x\r\nVersion: 1\r\n\r\nTitle\r\n\r\nText") == b"Title\n\nText"
    assert long_description(b"Name: x\n") == b""


def test_text_from_a_folder_a_glob_and_a_file(tmp_path: Path) -> None:
    files = {"b.txt": b"B", "a/c.txt": b"C", "a/d.md": b"D", ".git/e.txt": b"E", "a/.f": b"F"}
    write(tmp_path, files)

    def read(path: str) -> list[tuple[str, Any]]:
        return documents(SourceConfig(kind="text", path=path))

    assert read(f"{tmp_path}/") == [("a/c.txt", b"C"), ("a/d.md", b"D"), ("b.txt", b"B")]
    assert read(f"{tmp_path}/**/*.txt") == [("a/c.txt", b"C"), ("b.txt", b"B")]
    assert read(f"{tmp_path}/*.txt") == [("b.txt", b"B")]
    assert read(f"{tmp_path}/a/d.md") == [("d.md", b"D")]
    assert read(f"file://{tmp_path}/a") == [("c.txt", b"C"), ("d.md", b"D")]
    limited = SourceConfig(kind="text", path=str(tmp_path), limit=2)
    assert names(find_corpus(limited)) == ["a/c.txt", "a/d.md"]


def test_a_relative_path_is_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"corpus/a.txt": b"A"})
    monkeypatch.chdir(tmp_path)
    for path in ("corpus", "corpus/*.txt", "*/a.txt", "corpus/a.txt", "**/*.txt"):
        [shard] = find_corpus(SourceConfig(kind="text", path=path)).inputs
        # A worker reads it from another folder.
        assert os.path.isabs(shard.root)
        assert Path(shard.root, shard.key).read_bytes() == b"A"


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("*.txt", ["a.txt"], ["a/b.txt", "a.txt2", "atxt"]),
        ("**/*.txt", ["a.txt", "a/b.txt", "a/b/c.txt"], ["a.md"]),
        ("a/**", ["a/b", "a/b/c"], ["b/c", "a"]),
        ("part-?.x", ["part-1.x"], ["part-10.x", "part-/.x"]),
        ("a[1]+.txt", ["a[1]+.txt"], ["a1.txt"]),
    ],
)
def test_globs(glob: str, matching: list[str], other: list[str]) -> None:
    pattern = glob_pattern(glob)
    assert [key for key in matching + other if pattern.fullmatch(key)] == matching


def test_json_lines_plain_and_compressed(tmp_path: Path) -> None:
    first = json_lines({"body": "one", "id": 1}, {"body": None}) + b"\n{broken\n"
    second = gzip.compress(json_lines({"body": "drei"}, {"body": "lone \ud800"}))
    write(tmp_path, {"a.jsonl": first, "b.jsonl.gz": second, "c.csv": b"no"})
    source = SourceConfig(kind="jsonl", path=str(tmp_path), text_field="body")
    assert documents(source) == [
        ("a.jsonl#0", "one"),
        ("a.jsonl#1", ""),
        ("a.jsonl#3", None),
        ("b.jsonl.gz#0", "drei"),
        ("b.jsonl.gz#1", "lone \ud800"),
    ]


def test_parquet(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(600)]
    table = pa.table({"id": range(600), "body": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    source = SourceConfig(kind="parquet", path=f"{tmp_path}/*.parquet", text_field="body")
    assert documents(source) == [(f"a.parquet#{n}", text) for n, text in enumerate(texts)]


def test_a_hugging_face_data_set_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdscale.data.sources.corpus.ROWS_PER_PIECE", 4)
    write(tmp_path, {"set/train.jsonl": json_lines(*({"text": f"t{n}"} for n in range(10)))})
    path = str(tmp_path / "set")
    source = SourceConfig(kind="huggingface", path=path, limit=9)
    assert [(p.start, p.stop) for p in find_corpus(source).inputs] == [(0, 4), (4, 8), (8, 9)]
    assert documents(source) == [(f"{path}/train#{n}", f"t{n}") for n in range(9)]
    assert corpus_identity(source) == corpus_identity(source)
    with pytest.raises(KdscaleError, match="cannot be loaded"):
        find_corpus(SourceConfig(kind="huggingface", path=path, split="test"))
    with pytest.raises(KdscaleError, match=r"no field 'body', only text"):
        documents(SourceConfig(kind="huggingface", path=path, text_field="body"))


def test_a_hugging_face_data_set_as_it_was_saved(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"text": ["one", "two"]})
    data.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "both")
    plain = SourceConfig(kind="huggingface", path=str(tmp_path / "plain"))
    test = SourceConfig(kind="huggingface", path=str(tmp_path / "both"), split="test")
    assert [text for _, text in documents(plain)] == ["one", "two"]
    assert [text for _, text in documents(test)] == ["two"]
    with pytest.raises(KdscaleError, match="cannot be loaded"):
        find_corpus(test.model_copy(update={"split": "other"}))
    before = corpus_identity(plain)
    assert before["files"] >= 3
    datasets.Dataset.from_dict({"text": ["three"]}).save_to_disk(tmp_path / "plain")
    assert corpus_identity(plain) != before


@pytest.mark.parametrize("feature", [datasets.Image(), datasets.Audio()])
def test_other_columns_than_the_text_are_not_decoded(tmp_path: Path, feature: Any) -> None:
    # Bytes that nothing can decode, with or without a library for it.
    columns = {"text": ["one", "two"], "media": [{"bytes": b"no", "path": None}] * 2}
    features = datasets.Features({"text": datasets.Value("string"), "media": feature})
    table = pa.table(columns, schema=features.arrow_schema)
    data = datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
    data.with_format("numpy", columns=["media"]).save_to_disk(tmp_path / "set")
    data.to_parquet(tmp_path / "a.parquet")
    source = SourceConfig(kind="huggingface", path=str(tmp_path / "set"))
    for each in (source, SourceConfig(kind="parquet", path=str(tmp_path / "a.parquet"))):
        assert [text for _, text in documents(each)] == ["one", "two"]
        with pytest.raises(KdscaleError, match="no field 'body', only media, text"):
            documents(each.model_copy(update={"text_field": "body"}))
        with pytest.raises(KdscaleError, match=r"'media' of .* holds (Image|Audio|dict), not text"):
            documents(each.model_copy(update={"text_field": "media"}))


def test_columns_of_parquet_that_are_not_needed_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    read = pq.ParquetFile.iter_batches

    def spy(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(options["columns"])
        return read(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    pq.write_table(pa.table({"more": [b"x"], "text": ["t"], "a": ["c"]}), tmp_path / "a.parquet")
    assert labels(SourceConfig(kind="parquet", path=str(tmp_path)), "a") == ["c"]
    assert seen == [["text", "a"]]


def test_conversations_of_all_containers(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    write(tmp_path, {"a.jsonl": json_lines({"messages": talk})})
    pq.write_table(pa.table({"messages": [talk]}), tmp_path / "a.parquet")
    quoted = json.dumps(talk).replace('"', '""')
    write(tmp_path, {"a.csv": f'messages\n"{quoted}"\n'.encode()})
    datasets.Dataset.from_dict({"messages": [talk]}).save_to_disk(tmp_path / "set")
    expected = dump(
        Conversation([Message("user", "Why?", False), Message("assistant", "So.", True)])
    )
    for kind, name in (
        *(("jsonl", "a.jsonl"), ("parquet", "a.parquet"), ("csv", "a.csv")),
        ("huggingface", "set"),
    ):
        source = SourceConfig(kind=kind, path=str(tmp_path / name))  # type: ignore[arg-type]
        [shard] = find_corpus(source).inputs
        assert [d.content for d in read_shard(shard, source, chat=ChatConfig())] == [expected]
        with pytest.raises(KdscaleError, match="no field 'talk'") as caught:
            list(read_shard(shard, source, chat=ChatConfig(field="talk")))
        assert "data.chat" in caught.value.fix


def test_a_file_of_the_web(tmp_path: Path) -> None:
    write(tmp_path, {"set/a.jsonl": json_lines({"text": "one"})})
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/set/a.jsonl"
        source = SourceConfig(kind="jsonl", path=url)
        assert documents(source) == [("a.jsonl#0", "one")]
        assert not find_corpus(source).local
        server.shutdown()


@pytest.mark.parametrize(
    ("files", "kind", "problem"),
    [
        (
            {"a.jsonl": b'{"id": 1, "body": "x"}\n'},
            "jsonl",
            r"a.jsonl#0 has no field 'text', only ",
        ),
        ({"a.jsonl": b'{"text": 5}\n'}, "jsonl", "'text' of a.jsonl#0 holds int, not text"),
        ({"a.jsonl": b'["text"]\n'}, "jsonl", "a.jsonl#0 has no field 'text', only none"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, files: dict[str, bytes], kind: Any, problem: str
) -> None:
    write(tmp_path, files)
    with pytest.raises(KdscaleError, match=problem):
        documents(SourceConfig(kind=kind, path=str(tmp_path)))


@pytest.mark.parametrize("path", ["missing", "missing/*.txt", ".", "empty.parquet"])
def test_a_missing_corpus_is_an_error_at_once(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"other.csv": b""})
    source = SourceConfig(kind="parquet", path=path)
    with pytest.raises(KdscaleError, match="holds no parquet files"):
        find_corpus(source)
    with pytest.raises(KdscaleError, match="holds no parquet files"):
        corpus_identity(source)
    assert not (tmp_path / "missing").exists()


def test_the_identity_of_files_follows_each_change(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"one", "b.txt": b"two"})
    source = SourceConfig(kind="text", path=str(tmp_path))
    first = corpus_identity(source)
    assert (first["files"], first["bytes"]) == (2, 6)
    assert corpus_identity(source) == first
    seen = [first]
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    seen.append(corpus_identity(source))
    write(tmp_path, {"b.txt": b"two!"})
    seen.append(corpus_identity(source))
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    seen.append(corpus_identity(source))
    assert len({identity["sha256"] for identity in seen}) == 4


def test_remote_files_are_read_in_ranges() -> None:
    # fsspec's memory file system is a remote store like any other, within one process.
    store = open_store("memory://test-corpus/set")
    records = [{"text": f"{n} " * 400_000} for n in range(9)]
    assert len(json_lines(*records)) > RANGE_BYTES / 2
    store.put("a.jsonl", json_lines(*records))
    store.put("b.jsonl.gz", gzip.compress(json_lines(*records), 1))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [record["text"] for record in records]}), sink)
    store.put("c.parquet", sink.getvalue().to_pybytes())
    source = SourceConfig(kind="jsonl", path="memory://test-corpus/set")
    corpus = find_corpus(source)
    assert names(corpus) == ["a.jsonl", "b.jsonl.gz"]
    assert not corpus.local
    texts = [record["text"] for record in records]
    assert [text for _, text in documents(source)] == texts * 2
    for path in ("memory://test-corpus/set/*.parquet", "memory://test-corpus/set/c.parquet"):
        found = documents(SourceConfig(kind="parquet", path=path))
        assert found == [(f"c.parquet#{n}", text) for n, text in enumerate(texts)]
    assert corpus_identity(source)["files"] == 2


def test_csv_with_quotes_line_ends_and_long_fields(tmp_path: Path) -> None:
    long = "x" * 200_000
    table = f'\ufefflabel,text\nsport,"a, b\nc"\n,"{long}"\ntech,caf\xe9\n'
    write(tmp_path, {"a.csv": table.encode(), "b.tsv": b"text\tlabel\none\ttech\n"})
    source = SourceConfig(kind="csv", path=str(tmp_path))
    assert documents(source) == [
        ("a.csv#0", "a, b\nc"),
        ("a.csv#1", long),
        ("a.csv#2", "caf\xe9"),
        ("b.tsv#0", "one"),
    ]
    assert labels(source, "label") == ["sport", "", "tech", "tech"]
    with pytest.raises(KdscaleError, match=r"a\.csv has no field 'topic', only label, text"):
        labels(source, "topic")


def test_labels_are_beside_the_text(tmp_path: Path) -> None:
    lines = json_lines({"text": "a", "label": 3}, {"text": "b", "label": None})
    write(tmp_path / "json", {"a.jsonl": lines})
    assert labels(SourceConfig(kind="jsonl", path=str(tmp_path / "json")), "label") == ["3", None]
    write(tmp_path / "text", {"tech/a.txt": b"A", "sport/b.txt": b"B", "c.txt": b"C"})
    found = labels(SourceConfig(kind="text", path=str(tmp_path / "text")), "label")
    assert found == [None, "sport", "tech"]
    table = pa.table({"text": ["a", "b"], "kind": ["x", "y"], "more": [1, 2]})
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "a.parquet")
    source = SourceConfig(kind="parquet", path=str(tmp_path / "parquet"))
    assert labels(source, "kind") == ["x", "y"]
    write(tmp_path / "bad", {"a.jsonl": json_lines({"text": "a", "label": [1]})})
    with pytest.raises(KdscaleError, match=r"'label' of a.jsonl#0 holds list, not a class"):
        labels(SourceConfig(kind="jsonl", path=str(tmp_path / "bad")), "label")


def test_classes_that_a_data_set_numbers_have_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    source = SourceConfig(kind="huggingface", path=str(tmp_path))
    assert labels(source, "label") == ["pos", "neg"]


def test_a_saved_data_set_in_a_store_is_read_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(str(tmp_path / "saved"))
    upload_folder(tmp_path / "saved", open_store("memory://datasets"), "saved")
    source = SourceConfig(kind="huggingface", path="memory://datasets/saved", split="train")
    (shard,) = find_corpus(source).inputs
    assert [document.content for document in read_shard(shard, source)] == ["one", "two"]
    with pytest.raises(KdscaleError, match="There is no data set at memory://datasets/none"):
        find_corpus(source.model_copy(update={"path": "memory://datasets/none"}))
