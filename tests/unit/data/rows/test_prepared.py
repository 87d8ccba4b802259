"""Shards, the manifest, and prepared data as its readers see it."""

import multiprocessing
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kdscale.config.data import DataConfig
from kdscale.data.documents import Selection, TokenDocument
from kdscale.data.rows import splits as splits_module
from kdscale.data.rows.manifest import FORMAT, VERSION, summarise, write_manifest
from kdscale.data.rows.pack import Layout, RowBuilder, RowCounts, concatenate
from kdscale.data.rows.prepared import RowTable, open_prepared
from kdscale.data.rows.shard_files import decode_shard, encode_shard, in_shards, rows_per_shard
from kdscale.data.rows.splits import SplitWriter
from kdscale.data.tokenizer import train_tokenizer
from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store, upload_folder
from kdscale.types import Rows

T = 16
FIELDS = ("sample_ids", "input_ids", "segment_ids", "loss_mask", "byte_counts")


def make_rows(seed: int = 0, documents: int = 60) -> Rows:
    rng = np.random.default_rng(seed)
    texts = [
        (rng.integers(0, 500, n).astype(np.int32), int(3 * n))
        for n in rng.integers(2, 99, documents)
    ]
    return concatenate(list(RowBuilder(Layout(T, 3, False, True, 0)).build(texts)), T)


def assert_equal(found: Rows, expected: Rows) -> None:
    for name in FIELDS:
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Send copies of remote objects to a folder of this test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def publish(
    store: Store, rows: Rows, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Write a prepared data set with several shards by the real writer."""
    monkeypatch.setattr(splits_module, "rows_per_shard", lambda length: 40)
    info = train_tokenizer(["some words for a tokenizer"], 300, folder)
    upload_folder(folder, store, "tokenizer")
    writer = SplitWriter("causal-lm", DataConfig(seq_len=T), store, "", info, lambda *_: None)
    entry = writer._store_rows("train", [rows], RowCounts(rows=len(rows)))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "seq_len": T,
        "tokenizer": info.as_dict(),
        "splits": {"train": entry},
    }
    write_manifest(store, manifest)
    return manifest


@pytest.fixture(params=["local", "remote"])
def published(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Store, Rows]:
    name = f"{tmp_path.name}-{request.param}"
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{name}/prepared"
    store, rows = open_store(url), make_rows()
    publish(store, rows, tmp_path / "tokenizer", monkeypatch)
    return store, rows


def test_a_shard_is_an_arrow_file_of_fixed_width_columns() -> None:
    rows = make_rows()
    data = encode_shard(rows)
    assert data == encode_shard(rows)
    table = pa.ipc.open_file(data).read_all()
    assert {field.name: str(field.type) for field in table.schema} == {
        "sample_id": "fixed_size_binary[16]",
        "input_ids": f"fixed_size_list<item: int32>[{T}]",
        "segment_ids": f"fixed_size_list<item: int32>[{T}]",
        "loss_mask": f"fixed_size_list<item: uint8>[{T}]",
        "byte_count": "double",
    }
    assert table["input_ids"][5].as_py() == rows.input_ids[5].tolist()
    assert table["sample_id"][5].as_py() == rows.sample_ids[5].tobytes()
    assert_equal(decode_shard(pa.py_buffer(data)), rows)


def test_shards_have_the_size_asked_for() -> None:
    rows = make_rows()
    chunks = [rows.take(np.arange(a, b)) for a, b in ((0, 7), (7, 7), (7, 100), (100, len(rows)))]
    cut = list(in_shards(chunks, T, 30))
    assert [len(part) for part in cut[:-1]] == [30] * (len(rows) // 30)
    assert_equal(concatenate(cut, T), rows)
    count = rows_per_shard(T, 200_000)
    size = len(encode_shard(concatenate([rows] * 20, T).take(np.arange(count))))
    assert 0.6 * 200_000 < size <= 200_000


def test_rows_come_back_in_any_order(published: tuple[Store, Rows]) -> None:
    store, rows = published
    prepared = open_prepared(store)
    assert prepared.splits == ["train"]
    table = prepared.split("train")
    assert len(prepared.manifest["splits"]["train"]["shards"]) == -(-len(rows) // 40) > 2
    assert len(table) == len(rows)
    wanted = np.array([len(rows) - 1, 0, 41, 39, 40, 0, 100])
    assert_equal(table.take(wanted), rows.take(wanted))
    assert_equal(table.take(np.arange(len(rows))), rows)
    assert len(table.take(np.array([], np.int64))) == 0
    np.testing.assert_array_equal(table.sample_ids, rows.sample_ids)
    for bad in (-1, len(rows)):
        with pytest.raises(IndexError):
            table.take(np.array([0, bad]))


def test_only_the_shards_asked_for_are_fetched(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rows = open_store(f"memory://{tmp_path.name}-lazy/prepared"), make_rows()
    publish(store, rows, tmp_path / "tokenizer", monkeypatch)
    table = open_prepared(store).split("train")
    assert np.array_equal(table.sample_ids, rows.sample_ids)
    assert not list(temporary.rglob("*.arrow"))
    table.take(np.array([41, 79]))
    assert len(list(temporary.rglob("*.arrow"))) == 1
    # Another reader of this machine needs the store no more.
    store.delete("rows/train-00001.arrow")
    assert_equal(
        open_prepared(store).split("train").take(np.array([45])), rows.take(np.array([45]))
    )


def test_a_damaged_copy_is_fetched_again(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rows = open_store(f"memory://{tmp_path.name}-copy/prepared"), make_rows()
    publish(store, rows, tmp_path / "tokenizer", monkeypatch)
    first = np.array([0])
    open_prepared(store).split("train").take(first)
    [copy] = temporary.rglob("*.arrow")
    good = copy.read_bytes()
    flipped = bytearray(good)
    flipped[len(flipped) // 2] ^= 1
    for damaged in (bytes(flipped), good[:-1], b""):
        copy.unlink()
        copy.write_bytes(damaged)
        assert_equal(open_prepared(store).split("train").take(first), rows.take(first))
        assert copy.read_bytes() == good


def test_a_damaged_or_missing_shard_is_named(published: tuple[Store, Rows]) -> None:
    store, rows = published
    key = "rows/train-00001.arrow"
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    table = open_prepared(store).split("train")
    assert_equal(table.take(np.array([0])), rows.take(np.array([0])))
    with pytest.raises(KdscaleError, match=f"{key} in .* is missing or damaged"):
        table.take(np.array([0, 40]))
    store.delete(key)
    with pytest.raises(KdscaleError, match=f"{key} in .* is missing or damaged"):
        table.take(np.array([40]))


def _first_tokens(table: RowTable) -> list[int]:
    return table.take(np.array([1, 50])).input_ids[:, 0].tolist()


def test_a_table_goes_to_other_processes(published: tuple[Store, Rows]) -> None:
    store, rows = published
    table = open_prepared(store).split("train")
    expected = _first_tokens(table)
    assert expected == rows.input_ids[[1, 50], 0].tolist()
    assert len(table.sample_ids) == len(rows)
    # Neither the maps nor the ids travel.
    assert len(pickle.dumps(table)) < 3000
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_first_tokens, (table,)) == expected
    if store.local_path() is not None:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_first_tokens, (table,)) == expected


def test_the_tokenizers_folder_is_local_and_checked(published: tuple[Store, Rows]) -> None:
    from transformers import AutoTokenizer

    store, _ = published
    prepared = open_prepared(store)
    folder = prepared.tokenizer_folder()
    assert (
        len(AutoTokenizer.from_pretrained(folder)) == prepared.manifest["tokenizer"]["vocab_size"]
    )
    assert prepared.tokenizer_folder() == folder
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(KdscaleError, match="not the one that made the rows"):
        prepared.tokenizer_folder()


def test_what_is_not_prepared_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(KdscaleError, match=r"manifest\.json is missing"):
        open_prepared(store)
    manifest = publish(store, make_rows(), tmp_path / "tokenizer", monkeypatch)
    with pytest.raises(KdscaleError, match="no split 'test'"):
        open_prepared(store).split("test")
    write_manifest(store, manifest | {"version": VERSION + 1})
    with pytest.raises(KdscaleError, match=f"version {VERSION + 1}; this kdscale reads"):
        open_prepared(store)
    store.put("manifest.json", b"{half")
    with pytest.raises(KdscaleError, match="not valid JSON"):
        open_prepared(store)


def test_a_summary_names_what_was_lost() -> None:
    source = {
        "read": 1300, "undecodable": 2, "dropped_short": 12,
        "dropped_duplicate": 30, "leaked": 0, "kept": 1256,
    }  # fmt: skip
    counts = vars(RowCounts(documents=1200, split=800, packed=300, tokens=4_600_000, rows=36_000))
    written = {"rows_written": 36_000, "padding_share": 0.0123}
    fewer = {"rows_written": 256, "padding_share": 0.0}
    lost = {"truncated": 3, "targets_truncated": 1234, "rows_duplicate": 5}
    manifest = {
        "sources": {"train": source, "docs": source | {"leaked": 4}},
        "tokenizer": {"vocab_size": 900, "requested_vocab_size": 2048},
        "splits": {
            "train": {"counts": counts | written},
            "docs": {"counts": counts | fewer | lost},
        },
    }
    assert summarise(manifest) == [
        (
            "train",
            "read 1,300 documents, kept 1,256; dropped 2 undecodable, 12 short, 30 duplicate",
        ),
        (
            "docs",
            "read 1,300 documents, kept 1,256; dropped 2 undecodable, 12 short, 30 duplicate, "
            "4 also in train",
        ),
        ("tokenizer", "900 tokens, 2,048 were asked for: the text has no more"),
        (
            "train rows",
            "36,000 rows from 1,200 documents, 800 documents split, 300 pieces packed, "
            "4,600,000 tokens, 1.2% padding",
        ),
        (
            "docs rows",
            "256 of 36,000 rows from 1,200 documents, 800 documents split, 300 pieces packed, "
            "4,600,000 tokens, 0.0% padding, 3 documents truncated (1,234 tokens lost), "
            "5 duplicate rows dropped",
        ),
    ]


class OneDocument:
    """In place of a source's documents: tokens 0, 1, 2 and so on."""

    def __init__(self, length: int) -> None:
        self._document = TokenDocument(np.arange(length, dtype=np.int32), 3 * length, -1)

    def tokens(self, *_: Any) -> list[TokenDocument]:
        """As Documents.tokens."""
        return [self._document]


@pytest.mark.parametrize(("context", "seen"), [(None, 2), (1, 1), (11, 11), (T - 1, T - 1)])
def test_evaluation_rows_have_the_context_that_is_asked_for(
    context: int | None, seen: int, tmp_path: Path
) -> None:
    store, length = open_store(str(tmp_path / "store")), 100
    info = train_tokenizer(["some words for a tokenizer"], 300, tmp_path / "tokenizer")
    upload_folder(tmp_path / "tokenizer", store, "tokenizer")
    config = DataConfig(seq_len=T, overlap=2, pack=False, evaluation_context=context)
    writer = SplitWriter("causal-lm", config, store, "", info, lambda *_: None)
    documents: Any = OneDocument(length)
    chosen = Selection(np.ones(1, bool), np.full(1, -1, np.int32))
    splits = {
        "train": writer.write("train", documents, chosen),
        "validation": writer.write_sample("validation", documents, chosen),
    }
    shape = {"format": FORMAT, "version": VERSION, "seq_len": T, "tokenizer": info.as_dict()}
    write_manifest(store, {**shape, "splits": splits})
    prepared = open_prepared(store)
    for name, least in (("train", 2), ("validation", seen)):
        table = prepared.split(name)
        rows = table.take(np.arange(len(table)))
        before = [
            (int(row[at + 1]), at + 1)
            for row, mask in zip(rows.input_ids, rows.loss_mask, strict=True)
            for at in np.flatnonzero(mask)
        ]
        # Each token once, after `least` others or all that there are.
        assert sorted(token for token, _ in before) == list(range(1, length))
        assert all(count >= min(least, token) for token, count in before)
        assert min(count for token, count in before if token >= least) == least
