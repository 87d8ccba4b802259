"""An export holds what a reader gives, decoded, in files that others open."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load

from kdscale.cache.commit.manifest import publish
from kdscale.cache.maintain.export import export
from kdscale.cache.read.reader import CacheReader
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec, VaroptCodec
from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store
from kdscale.types import DenseTargets
from tests.s3 import S3Server
from tests.unit.cache.planted import Plant
from tests.unit.cache.test_commit import appended

CODECS = [
    VaroptCodec(k=4, head=2),
    TopkCodec(k=5),
    SampleCodec(draws=6),
    SampleCodec(draws=6, tau=0.8),
    FullCodec(),
]


@pytest.fixture
def out(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


def parquet_columns(data: bytes) -> dict[str, np.ndarray]:
    """By Python objects, as somebody reads them who knows nothing of lists of fixed size."""
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    ids = [list(value) for value in table["sample_id"].to_pylist()]
    columns = {"sample_id": np.array(ids, np.uint8)}
    for name in table.column_names[1:]:
        columns[name] = np.array(table[name].to_pylist())
    return columns


def exported(out: Store, index: dict[str, Any]) -> dict[str, np.ndarray]:
    """All columns over all files."""
    read = {"parquet": parquet_columns, "safetensors": load}[index["format"]]
    parts = [read(out.get(file["file"])) for file in index["files"]]
    assert [len(part["input_ids"]) for part in parts] == [file["rows"] for file in index["files"]]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def expected_targets(reader: CacheReader, row: int, position: int) -> dict[str, Any]:
    """Return a position's targets by the codec alone, one position at a time."""
    cached = reader.read(np.array([row]))
    targets = reader.codec.decode(torch.from_numpy(cached.payload[0, position].copy()))
    if isinstance(targets, DenseTargets):
        return {"log_probs": targets.log_probs.numpy()}
    found = {"target_ids": targets.ids.numpy(), "target_probs": targets.probs.numpy()}
    return found if targets.ghost is None else found | {"ghost": targets.ghost.numpy()}


@pytest.mark.parametrize("file_format", ["parquet", "safetensors"])
@pytest.mark.parametrize("config", CODECS, ids=str)
def test_read_back_it_is_what_the_reader_gives(
    plant: Plant, out: Store, config: CodecConfig, file_format: Any
) -> None:
    reader = CacheReader(plant(config=config).publish().store)
    index = export(reader, out, file_format, file_bytes=40_000)
    assert json.loads(out.get("index.json")) == json.loads(json.dumps(index))
    found = exported(out, index)
    rows = reader.read(np.arange(23))
    for name, values in (
        ("sample_id", rows.rows.sample_ids),
        ("input_ids", rows.rows.input_ids),
        ("segment_ids", rows.rows.segment_ids),
        ("loss_mask", rows.rows.loss_mask),
        ("byte_count", rows.rows.byte_counts),
        ("entropy", rows.entropy),
        ("nll", rows.nll),
    ):
        assert np.array_equal(found.pop(name), values), name
    for row in range(23):
        for position in range(16):
            expected = expected_targets(reader, row, position)
            assert expected.keys() == found.keys()
            for name, values in expected.items():
                here = found[name][row, position]
                if rows.rows.loss_mask[row, position]:
                    assert np.allclose(here, values, rtol=1e-6, atol=0), name
                else:
                    assert np.all(np.isneginf(here) if name == "log_probs" else here == 0), name


def test_columns_are_of_the_types_that_the_index_says(plant: Plant, out: Store) -> None:
    index = export(CacheReader(plant(config=TopkCodec(k=5)).publish().store), out, "parquet")
    schema = pq.read_schema(pa.BufferReader(out.get("part-000000.parquet")))
    assert schema.field("sample_id").type == pa.binary(16)
    assert schema.field("target_ids").type == pa.list_(pa.list_(pa.int32(), 5), 16)
    assert schema.field("target_probs").type == pa.list_(pa.list_(pa.float32(), 5), 16)
    assert schema.field("ghost").type == pa.list_(pa.float32(), 16)
    assert index["columns"]["target_probs"] == {"dtype": "float32", "shape": (16, 5)}
    assert index["cache"]["identity"]["vocab_size"] == 50
    described = json.loads(schema.metadata[b"kdscale"])
    assert (described["version"], described["identity"]) == (1, index["cache"]["identity"])


def test_files_are_no_larger_than_asked_for_and_no_more_than_a_shard(
    plant: Plant, out: Store
) -> None:
    reader = CacheReader(plant().publish().store)
    files = export(reader, out.child("large"), "safetensors")["files"]
    assert [(file["first_row"], file["rows"]) for file in files] == [(0, 8), (8, 8), (16, 7)]
    files = export(reader, out.child("small"), "safetensors", file_bytes=2500)["files"]
    # A row takes 16 + 16 * (4 + 4 + 1 + 4 * 8) + 16 bytes.
    assert {file["rows"] for file in files[:-1]} == {2500 // 688}
    files = export(reader, out.child("least"), "safetensors", file_bytes=1)["files"]
    assert [file["rows"] for file in files] == [1] * 23


def test_only_the_first_rows(plant: Plant, out: Store) -> None:
    planted = plant().publish()
    steps: list[tuple[int, int]] = []
    reader = CacheReader(planted.store)
    index = export(reader, out, "safetensors", rows=10, progress=lambda *at: steps.append(at))
    assert np.array_equal(exported(out, index)["input_ids"], planted.rows.input_ids[:10])
    assert (index["rows"], steps) == (10, [(8, 10), (10, 10)])
    assert export(reader, out.child("all"), "safetensors", rows=99)["rows"] == 23


def test_appended_rows_are_exported_behind_the_others(plant: Plant, out: Store) -> None:
    planted = plant().publish()
    more = appended(planted)
    publish(planted.store, more.generation)
    found = exported(out, export(CacheReader(planted.store), out, "parquet"))
    assert np.array_equal(found["input_ids"][23:], more.rows.input_ids)


def test_a_place_that_is_not_empty_is_refused(plant: Plant, out: Store) -> None:
    out.put("part-000009.parquet", b"")
    with pytest.raises(KdscaleError, match="is not empty"):
        export(CacheReader(plant().publish().store), out, "parquet")
    assert out.list() == ["part-000009.parquet"]


def test_an_export_that_fails_has_no_index(plant: Plant, out: Store) -> None:
    planted = plant().publish()
    reader = CacheReader(planted.store)
    planted.damage(reader.manifest.shards[2].object, planted.chunks(2)[0].offset + 50)
    with pytest.raises(KdscaleError, match="is corrupt"):
        export(reader, out, "parquet")
    assert "index.json" not in out.list()


def test_pages_have_checksums(plant: Plant, out: Store) -> None:
    export(CacheReader(plant().publish().store), out, "parquet")
    data = bytearray(out.get("part-000000.parquet"))
    column = pq.read_metadata(pa.BufferReader(data)).row_group(0).column(1)
    data[column.data_page_offset + column.total_compressed_size - 5] ^= 1
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(pa.BufferReader(data), page_checksum_verification=True)


@pytest.mark.s3
def test_export_from_disk_to_s3(plant: Plant, s3_env: S3Server) -> None:
    reader = CacheReader(plant().publish().store)
    out = open_store(f"{s3_env.url}/cache-export")
    found = exported(out, export(reader, out, "parquet"))
    assert np.array_equal(found["input_ids"], reader.read(np.arange(23)).rows.input_ids)
