"""A small cache with planted distributions: at every position, 3/4 on the next token of the row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xxhash

from kdscale.cache.codecs import Codec, make_codec, uniforms
from kdscale.cache.commit.manifest import load_manifest, publish
from kdscale.cache.commit.plan import create_or_load_plan, selection_hash
from kdscale.cache.commit.writer import ShardWriter
from kdscale.cache.format.checked_read import read_index
from kdscale.cache.format.packing import Packing, packable
from kdscale.cache.format.prior import Prior, count_prior
from kdscale.cache.format.records import Chunk, Generation
from kdscale.cache.rows import RowStats
from kdscale.cache.spec import FORMAT
from kdscale.config.cache import CodecConfig, VaroptCodec
from kdscale.store import Store
from kdscale.types import Rows

VOCAB = 50
ROW_LENGTH = 16
DATA = "ef" * 8


@dataclass(frozen=True)
class Planted:
    """A cache to be, and every step of making it."""

    store: Store
    codec: Codec
    identity: dict[str, Any]
    rows: Rows
    stats: RowStats
    payload: np.ndarray  # [R, T, bytes a position] uint8
    sequences_per_shard: int
    packed: bool

    @cached_property
    def generation(self) -> Generation:
        """The agreed plan, with chunks of three rows."""
        return self.agree()

    @property
    def writer(self) -> ShardWriter:
        """A writer of shards."""
        return ShardWriter(self.store, self.identity, self.generation)

    def agree(self, **changes: Any) -> Generation:
        """Fix the plan, or find it."""
        options: dict[str, Any] = {
            "data": DATA,
            "request": selection_hash(len(self.rows)),
            "rows": len(self.rows),
            "sequences_per_shard": self.sequences_per_shard,
            "sequences_per_chunk": 3,
            "count_prior": (lambda: planted_prior(self.rows)) if self.packed else None,
        }
        return create_or_load_plan(self.store, self.identity, **(options | changes))

    def shard(self, shard: int) -> tuple[int, Rows, np.ndarray, RowStats]:
        """Return the arguments of `ShardWriter.commit` for a shard."""
        at = np.array(self.generation.shards[shard])
        s = self.stats
        stats = RowStats(s.sample_ids[at], s.entropy[at], s.nll[at], s.length[at])
        return shard, self.rows.take(at), self.payload[at], stats

    def publish(self) -> "Planted":
        """Make the cache complete."""
        for shard in range(len(self.generation.shards)):
            assert self.writer.commit(*self.shard(shard))
        publish(self.store, self.generation)
        return self

    def chunks(self, shard: int) -> tuple[Chunk, ...]:
        """Return the table of chunks of a published shard."""
        return read_index(self.store, load_manifest(self.store).shards[shard]).chunks

    def damage(self, key: str, at: int) -> None:
        """Flip one bit of a stored object."""
        data = bytearray(self.store.get(key))
        data[at] ^= 0x10
        self.store.put(key, bytes(data))


Plant = Callable[..., Planted]


def planted_rows(count: int, labelled: bool = False) -> Rows:
    generator = np.random.default_rng(0)
    input_ids = generator.integers(0, VOCAB, (count, ROW_LENGTH), dtype=np.int32)
    mask = np.ones(input_ids.shape, np.bool_)
    mask[:, -1] = False
    mask[np.arange(count), generator.integers(0, ROW_LENGTH, count)] = False
    digests = [bytes.fromhex(xxhash.xxh3_128_hexdigest(row.tobytes())) for row in input_ids]
    return Rows(
        sample_ids=np.frombuffer(b"".join(digests), np.uint8).reshape(count, 16),
        input_ids=input_ids,
        segment_ids=np.sort(generator.integers(1, 3, input_ids.shape, dtype=np.int32), axis=1),
        loss_mask=mask,
        byte_counts=generator.uniform(20, 90, count),
        labels=np.where(mask, np.roll(input_ids, 3, axis=1), -1) if labelled else None,
    )


def planted_payload(codec: Codec, rows: Rows) -> np.ndarray:
    following = torch.from_numpy(np.roll(rows.input_ids, -1, axis=1)).long()
    probs = torch.full((*following.shape, VOCAB), 0.25 / (VOCAB - 1))
    probs.scatter_(-1, following[..., None], 0.75)
    sample_ids = torch.from_numpy(rows.sample_ids.copy())
    noise = uniforms(0, sample_ids, ROW_LENGTH, codec.streams)
    encoded = codec.encode(probs.log().flatten(0, 1), noise.flatten(0, 1))
    return encoded.payload.reshape(*following.shape, -1).numpy()


def planted_prior(rows: Rows) -> Prior:
    return count_prior([(rows.input_ids, rows.loss_mask)], VOCAB)


def stored_payload(codec: Codec, rows: Rows, payload: np.ndarray) -> np.ndarray:
    """Return the payload as a packed cache gives it back: the ids of a set in another order."""
    packing, mask = Packing(codec, planted_prior(rows)), rows.loss_mask
    tokens = rows.input_ids[mask]
    result = np.zeros_like(payload)
    result[mask] = packing.unpack(tokens, packing.pack(tokens, payload[mask]))
    return result


def make_planted(
    store: Store,
    rows: int = 23,
    sequences_per_shard: int = 8,
    config: CodecConfig | None = None,
    packed: bool = True,
    labelled: bool = False,
) -> Planted:
    """Return the content of a cache; nothing of it is stored yet.

    Codecs that sample are packed, unless `packed` says otherwise; `labelled` rows bring their
    labels, as a masked language model's.
    """
    codec = make_codec(config or VaroptCodec(k=4, head=2), VOCAB)
    content = planted_rows(rows, labelled)
    generator = np.random.default_rng(1)
    stats = RowStats(
        content.sample_ids,
        generator.uniform(0, 4, rows).astype(np.float32),
        generator.uniform(0, 8, rows).astype(np.float32),
        content.loss_mask.sum(1).astype(np.int32),
    )
    identity = {
        "format": FORMAT,
        "task": "masked-lm" if labelled else "causal-lm",
        "teacher": "ab" * 8,
        "tokenizer": "cd" * 8,
        "vocab_size": VOCAB,
        "seq_len": ROW_LENGTH,
        "codec": codec.describe(),
        "temperature": 1.0,
        "dtype": "float32",
        "seed": 0,
    }
    packed = packed and packable(codec)
    payload = planted_payload(codec, content) * content.loss_mask[..., None]
    if packed:
        payload = stored_payload(codec, content, payload)
    return Planted(store, codec, identity, content, stats, payload, sequences_per_shard, packed)


def changed(payload: np.ndarray, change: int = 1) -> np.ndarray:
    """Another attempt's payload: other head values, as a GPU's rounding would make them."""
    other = payload.copy()
    other[..., 0] ^= np.uint8(change) * (payload[..., 0] > 0)
    return other


def assert_same_rows(found: Rows, expected: Rows) -> None:
    """All columns, value by value and type by type."""
    for name in ("sample_ids", "input_ids", "segment_ids", "loss_mask", "byte_counts"):
        left, right = getattr(found, name), getattr(expected, name)
        assert left.dtype == right.dtype, name
        assert np.array_equal(left, right), name
    assert (found.labels is None) == (expected.labels is None)
    if found.labels is not None and expected.labels is not None:
        assert found.labels.dtype == expected.labels.dtype == np.int32
        assert np.array_equal(found.labels, expected.labels)
