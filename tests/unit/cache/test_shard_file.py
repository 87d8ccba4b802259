"""The container round-trips, chunk by chunk, and any Arrow reader opens it."""

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from kdscale.cache.format.packing import Packing
from kdscale.cache.format.shard_file import (
    Layout,
    ShardObject,
    decode_chunk,
    decode_index,
    encode_index,
    encode_shard,
)
from tests.unit.cache.planted import Plant, Planted, assert_same_rows, planted_prior


def encode(planted: Planted, sequences_per_chunk: int = 3) -> ShardObject:
    return encode_shard(
        planted.rows, planted.payload, planted.stats, {"kdscale.format": "1"}, sequences_per_chunk
    )


def test_each_chunk_decodes_from_its_range_alone(plant: Plant) -> None:
    planted = plant()
    shard = encode(planted)
    assert [chunk.rows for chunk in shard.chunks] == [3] * 7 + [2]
    start = 0
    for chunk in shard.chunks:
        data = shard.data[chunk.offset : chunk.offset + chunk.length]
        assert chunk.digest == xxhash.xxh3_64_hexdigest(data)
        found = decode_chunk(data, Layout(16, planted.codec.bytes_per_position, None))
        at = np.arange(start, start + chunk.rows)
        assert_same_rows(found.rows, planted.rows.take(at))
        assert np.array_equal(found.payload, planted.payload[at])
        assert np.array_equal(found.entropy, planted.stats.entropy[at])
        assert np.array_equal(found.nll, planted.stats.nll[at])
        start += chunk.rows
    assert shard.digest == xxhash.xxh3_128_hexdigest(shard.data)


def test_any_arrow_reader_opens_the_object(plant: Plant) -> None:
    planted = plant()
    file = pa.ipc.open_file(pa.py_buffer(encode(planted).data))
    assert file.num_record_batches == 8
    assert file.schema.metadata == {b"kdscale.format": b"1"}
    table = file.read_all()
    assert table.column_names == [
        "sample_id",
        "input_ids",
        "segment_ids",
        "loss_mask",
        "byte_count",
        "payload",
        "entropy",
        "nll",
        "length",
    ]
    assert table["input_ids"].to_pylist() == planted.rows.input_ids.tolist()
    assert table["length"].to_pylist() == planted.rows.loss_mask.sum(1).tolist()
    assert table["payload"][5].as_py() == planted.payload[5].tobytes()
    assert table["sample_id"][22].as_py() == planted.rows.sample_ids[22].tobytes()


def test_equal_input_gives_equal_bytes(plant: Plant) -> None:
    planted = plant()
    first, second = encode(planted), encode(planted)
    assert first == second
    planted.payload[4, 3, 0] ^= 1
    assert encode(planted).digest != first.digest


def test_flat_and_shaped_payload_are_the_same(plant: Plant) -> None:
    planted = plant()
    flat = planted.payload.reshape(len(planted.rows), -1)
    again = encode_shard(planted.rows, flat, planted.stats, {"kdscale.format": "1"}, 3)
    assert again == encode(planted)


def test_tokens_and_masks_take_less_than_their_columns(plant: Plant) -> None:
    """Compression at rest: the 9 bytes a position of tokens, generations and mask shrink."""
    planted = plant(rows=400)
    # A payload that does not shrink.
    generator = np.random.default_rng(0)
    planted.payload[:] = generator.integers(0, 256, planted.payload.shape, np.uint8)
    positions = planted.rows.input_ids.size
    stored = len(encode(planted, sequences_per_chunk=400).data) / positions
    assert planted.codec.bytes_per_position < stored < planted.codec.bytes_per_position + 7


def test_packed_chunks_take_less_and_come_back(plant: Plant) -> None:
    planted = plant(rows=400)
    packing = Packing(planted.codec, planted_prior(planted.rows))
    plain, packed = (
        encode_shard(planted.rows, planted.payload, planted.stats, {}, 200, p)
        for p in (None, packing)
    )
    assert len(packed.data) < len(plain.data)
    layout = Layout(16, planted.codec.bytes_per_position, packing)
    _, second = packed.chunks
    data = packed.data[second.offset : second.offset + second.length]
    found = decode_chunk(data, layout)
    assert np.array_equal(found.payload, planted.payload[200:])
    assert_same_rows(found.rows, planted.rows.take(np.arange(200, 400)))
    # For any Arrow reader the payload of a chunk stands in its first row.
    sizes = [len(p.as_py()) for p in pa.ipc.open_file(packed.data).get_batch(1)["payload"]]
    assert sizes[0] > 0
    assert set(sizes[1:]) == {0}


def test_index_round_trips(plant: Plant) -> None:
    planted = plant()
    chunks = encode(planted).chunks
    found = decode_index(encode_index(planted.stats, chunks))
    assert found.chunks == chunks
    for name in ("sample_ids", "entropy", "nll", "length"):
        assert getattr(found.stats, name).dtype == getattr(planted.stats, name).dtype
        assert np.array_equal(getattr(found.stats, name), getattr(planted.stats, name))


def test_statistics_of_other_rows_are_refused(plant: Plant) -> None:
    planted, other = plant(), plant(rows=8)
    with pytest.raises(AssertionError):
        encode_shard(planted.rows, planted.payload, other.stats, {}, 3)
