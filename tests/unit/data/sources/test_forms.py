"""Files are read as what they are, whatever their names say, or an error names them."""

import bz2
import codecs
import gzip
import json
import lzma
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdscale.config.data import SourceConfig
from kdscale.data.cleaning.cleaner import Status, decode
from kdscale.data.sources import json_records, readers
from kdscale.data.sources.corpus import find_corpus
from kdscale.data.sources.readers import read_shard
from kdscale.errors import KdscaleError

TEXTS = [f"caf\u00e9 number {n}" for n in range(9)]
RECORDS = [{"text": text, "more": [n, {"text": "inside"}]} for n, text in enumerate(TEXTS)]

LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
ARRAY = json.dumps(RECORDS, ensure_ascii=False, indent=1)
PRETTY = "\n".join(json.dumps(record, ensure_ascii=False, indent=2) for record in RECORDS)
TABLE = "id,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(TEXTS))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"


def zipped(data: bytes) -> bytes:
    """Compress without the time, which would be part of a test's name."""
    return gzip.compress(data, mtime=0)


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS, "more": [bytes(9)] * len(TEXTS)}), sink)
    return bytes(sink.getvalue().to_pybytes())


def read(folder: Path, kind: Any, data: bytes | str, name: str = "a.json") -> list[Any]:
    """Return (number in the file, content) of each document."""
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    source = SourceConfig(kind=kind, path=str(folder / name))
    found = [each for shard in find_corpus(source).inputs for each in read_shard(shard, source)]
    return [(int(each.name.rpartition("#")[2]), each.content) for each in found]


@pytest.mark.parametrize(
    "data",
    [
        LINES,
        ARRAY,
        "\ufeff" + LINES,
        "\ufeff" + ARRAY,
        "\n \r\n" + ARRAY,
        "\ufeff" + json.dumps(RECORDS[:3]) + "\n\ufeff" + json.dumps(RECORDS[3:]),
        ARRAY.replace("\n", "\r\n"),
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\r"),
        json.dumps(RECORDS),
        PRETTY,
        LINES.replace("\n", ""),
        LINES.replace("}\n", "},\n"),
        "\n".join(json.dumps([record]) for record in RECORDS),
        json.dumps({"data": RECORDS}),
        "\ufeff" + json.dumps({"version": 1, "tags": ["a"], "rows": RECORDS, "none": []}, indent=2),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le"])
def test_json_of_all_forms(tmp_path: Path, data: str, encoding: str) -> None:
    found = read(tmp_path, "jsonl", data.encode(encoding), "a.jsonl")
    assert found == list(enumerate(TEXTS))


def test_lone_surrogates_of_an_array_stay(tmp_path: Path) -> None:
    data = json.dumps([*RECORDS[:2], {"text": "lone \ud800"}])
    assert read(tmp_path, "jsonl", data)[2:] == [(2, "lone \ud800")]


def test_numbers_of_lines_count_all_lines(tmp_path: Path) -> None:
    assert read(tmp_path, "jsonl", "\n" + LINES)[:2] == [(1, TEXTS[0]), (2, TEXTS[1])]


@pytest.mark.parametrize(
    "packed",
    [
        zipped(LINES.encode()),
        bz2.compress(LINES.encode()),
        lzma.compress(LINES.encode()),
        pa.compress(LINES.encode(), codec="zstd", asbytes=True),
        pa.compress(LINES.encode(), codec="lz4", asbytes=True),
        zipped(LINES[:80].encode()) + zipped(LINES[80:].encode()),
        zipped(codecs.BOM_UTF8 + ARRAY.encode()),
        zipped(ARRAY.encode("utf-16")),
        LINES.encode(),
        parquet(),
    ],
)
def test_what_is_compressed_is_seen_in_its_bytes(tmp_path: Path, packed: bytes) -> None:
    for name in ("a.jsonl", "a.jsonl.gz", "a.json.zst"):
        assert read(tmp_path, "jsonl", packed, name) == list(enumerate(TEXTS))


def test_a_broken_line_is_a_document_that_cannot_be_decoded(tmp_path: Path) -> None:
    for broken in ("{broken", '{"text": "cut', '{"text": "cut",', "\x00", "one, two"):
        found = read(tmp_path, "jsonl", broken + "\n" + LINES)
        assert found == [(0, None), *((n + 1, text) for n, text in enumerate(TEXTS))], broken
    for broken in (
        "[1, ",
        '{"text": 1} {"text": 2}',
        "[" * 100_000,
        '{"text": ' + "1" * 5000 + "}",
    ):
        assert read(tmp_path, "jsonl", LINES + broken)[-1] == (len(TEXTS), None)


@pytest.mark.parametrize(
    ("kind", "data", "problem"),
    [
        ("jsonl", "{no\n" * 10 + LINES, r"10 of the 19 records of a\.json .* line 1: Expecting"),
        ("jsonl", TABLE, r"10 of the 10 records of a\.json .* line 1: "),
        ("jsonl", LINES.encode("latin-1"), r"9 of the 9 records of a\.json .* record 0: 'utf-8'"),
        ("jsonl", ARRAY.encode("latin-1"), r"9 of the 9 records of a\.json .* record 0: 'utf-8'"),
        ("jsonl", ARRAY[:-9], r"a\.json is damaged or not a jsonl file: line \d+: "),
        ("jsonl", PRETTY[:-9], r"a\.json is damaged or not a jsonl file: line \d+: "),
        ("jsonl", ARRAY + "\nmore", r"a\.json is damaged .* line \d+: Expecting value"),
        ("jsonl", ARRAY.replace('"more": [\n   4', '"more" [\n   4'), r"a\.json is dam.*line 40: "),
        ("jsonl", "[" * 100_000, r"a\.json is damaged .* line 1: maximum recursion"),
        (
            "jsonl",
            json.dumps({"a": RECORDS, "b": RECORDS}),
            r"a\.json#0 has no field 'text', only a",
        ),
        ("jsonl", json.dumps({"data": [1]}), r"a\.json#0 has no field 'text', only data"),
        ("jsonl", json.dumps({"text": TEXTS}), r"'text' of a\.json#0 holds list, not text"),
        ("jsonl", zipped(LINES.encode())[:-20], r"a\.json is damaged"),
        ("jsonl", pa.compress(LINES.encode(), "zstd", True)[:-9], r"a\.json is damaged"),
        ("jsonl", lzma.compress(LINES.encode())[:-20], r"a\.json is damaged"),
        ("jsonl", zipped(parquet()), r"a\.json is a Parquet file, not JSON"),
        ("jsonl", b"PK\x03\x04\0", r"a\.json is a zip archive, not JSON"),
        ("jsonl", LFS, r"a\.json is a git-lfs pointer"),
        ("jsonl", b"<!DOCTYPE html>\n", r"a\.json is an HTML page, not JSON"),
        ("csv", LINES, r"a\.json has no field 'text', only"),
        ("csv", TABLE.encode("latin-1"), r"9 of the 9 records of a\.json .* record 0: 'utf-8'"),
        (
            "csv",
            "text\n" + "one, two\n" * 3,
            r"3 of the 3 records .* line 2: 2 fields, and the header",
        ),
        ("csv", TABLE + '9,"open\n10,more\n', r"a\.json is damaged .* line 11: a quote that opens"),
        ("csv", "text,text\na,b\n", r"a\.json has several columns 'text'"),
        ("csv", zipped(TABLE.encode())[:-9], r"a\.json is damaged"),
        ("parquet", LINES, r"a\.json is damaged or not a parquet file"),
        ("parquet", "PAR1 no", r"a\.json is damaged or not a parquet file"),
        ("parquet", LFS, r"a\.json is a git-lfs pointer"),
        ("parquet", parquet()[:-9], r"a\.json is damaged or not a parquet file"),
        ("parquet", parquet()[:40] + b"\xee" * 40 + parquet()[80:], r"a\.json is damaged"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, kind: str, data: bytes | str, problem: str
) -> None:
    with pytest.raises(KdscaleError, match=problem):
        read(tmp_path, kind, data)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"text\n", b"\xef\xbb\xbftext,id"])
def test_a_table_without_rows_has_no_documents(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path, "csv", data) == []
    assert read(tmp_path, "parquet", b"") == read(tmp_path, "jsonl", b"") == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", "\ufeff" + TABLE),
        ("a.csv", "\n" + TABLE),
        ("a.csv", TABLE.replace("\n", "\r")),
        ("a.csv", TABLE.replace(",", ";")),
        ("a.csv", TABLE.replace(",", "\t")),
        ("a.TSV", TABLE.replace(",", "\t")),
        ("a.tsv", TABLE),
        ("a.tsv.gz", TABLE.replace(",", "\t")),
    ],
)
def test_tables_of_all_forms(tmp_path: Path, name: str, data: str) -> None:
    expected = list(enumerate(TEXTS))
    assert read(tmp_path, "csv", data, name) == expected
    assert read(tmp_path, "csv", data.encode("utf-16"), name) == expected
    assert read(tmp_path, "csv", zipped(data.encode()), name) == expected


def test_rows_unlike_the_header(tmp_path: Path) -> None:
    rows = "id,text,label\n1,a,x\n2,b\n3\n4,c,x,more\n5,d,x,,\n6,e\x00,x\n"
    expected = [(0, "a"), (1, "b"), (2, None), (3, None), (4, "d"), (5, "e\x00")]
    assert read(tmp_path, "csv", rows) == expected


def test_texts_of_parquet_that_are_not_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"one", b"two", b"caf\xe9"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": texts, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    found = read(tmp_path, "parquet", (tmp_path / "a.parquet").read_bytes(), "a.parquet")
    statuses = [decode(content, 1)[1] for _, content in found]
    assert statuses == [Status.KEPT, Status.KEPT, Status.UNDECODABLE]


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (b"plain \xe9", b"plain \xe9"),
        (zipped(b"packed"), b"packed"),
        ("caf\u00e9".encode("utf-16"), "caf\u00e9"),
        (zipped(b"packed" * 99)[:-9], None),
        (parquet(), None),
        (LFS, None),
        (b"\xff\xfea", None),
        (b"PAR1\x15 begins a text", b"PAR1\x15 begins a text"),
    ],
)
def test_files_that_are_one_document(tmp_path: Path, data: bytes, content: Any) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    source = SourceConfig(kind="text", path=str(tmp_path))
    [shard] = find_corpus(source).inputs
    [found] = read_shard(shard, source)
    assert found.content == content


def test_a_file_in_which_nothing_can_be_decoded_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_HOPELESS_RECORDS", 20)
    with pytest.raises(KdscaleError, match=r"20 of the 20 records of a\.json cannot be decoded"):
        read(tmp_path, "jsonl", "no\n" * 90)
    assert len(read(tmp_path, "jsonl", "no\n" * 19 + LINES * 9)) == 19 + 81


def test_an_array_larger_than_memory_is_read_by_and_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"text": "x" * 50_000}
    data = json.dumps([record] * 800, indent=1)
    (tmp_path / "a.json").write_text(data)
    source = SourceConfig(kind="jsonl", path=str(tmp_path))
    [shard] = find_corpus(source).inputs
    tracemalloc.start()
    assert sum(len(each.content or "") for each in read_shard(shard, source)) == 40_000_000
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < len(data) / 3
    # A value of many windows is whole, one that is too long is named.
    long = json.dumps([{"text": "\u00e9\n" * 2_000_000}, {"text": "end"}])
    assert [len(text) for _, text in read(tmp_path, "jsonl", long)] == [4_000_000, 3]
    monkeypatch.setattr(json_records, "MOST_CHARACTERS", 2**20)
    with pytest.raises(KdscaleError, match="line 1: a single value of more than 1,048,576 char"):
        read(tmp_path, "jsonl", long)
