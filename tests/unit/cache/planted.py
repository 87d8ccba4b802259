"""A small cache with planted distributions: at every position, 3/4 on the next token of the row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash

from kdscale.cache.codecs import Codec, make_codec, uniforms
from kdscale.cache.container import RowStats
from kdscale.cache.manifest import publish
from kdscale.cache.plan import Plan, agree_plan, make_plan
from kdscale.cache.writer import UnitWriter
from kdscale.config.cache import CodecConfig, VaroptCodec
from kdscale.store import Store
from kdscale.types import Rows

VOCAB = 50
ROW_LENGTH = 16


@dataclass(frozen=True)
class Planted:
    """A cache to be, and every step of making it."""

    store: Store
    codec: Codec
    identity: dict[str, Any]
    plan: Plan
    rows: Rows
    stats: RowStats
    payload: np.ndarray  # [R, T, bytes a position] uint8

    @property
    def writer(self) -> UnitWriter:
        """With blocks of three rows."""
        return UnitWriter(self.store, self.identity, rows_per_block=3)

    def agree(self) -> None:
        """Fix the plan."""
        agree_plan(self.store, self.identity, self.plan, np.arange(len(self.rows)))

    def unit(self, unit: int) -> tuple[int, Rows, np.ndarray, RowStats]:
        """What `UnitWriter.commit` takes for a unit."""
        at = np.array(self.plan.units[unit])
        s = self.stats
        stats = RowStats(s.sample_ids[at], s.entropy[at], s.nll[at], s.length[at])
        return unit, self.rows.take(at), self.payload[at], stats

    def publish(self) -> "Planted":
        """Make the cache complete."""
        self.agree()
        for unit in range(len(self.plan.units)):
            assert self.writer.commit(*self.unit(unit))
        publish(self.store, self.identity, self.plan)
        return self

    def damage(self, key: str, at: int) -> None:
        """Flip one bit of a stored object."""
        data = bytearray(self.store.get(key))
        data[at] ^= 0x10
        self.store.put(key, bytes(data))


Plant = Callable[..., Planted]


def planted_rows(count: int) -> Rows:
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
    )


def planted_payload(codec: Codec, rows: Rows) -> np.ndarray:
    following = torch.from_numpy(np.roll(rows.input_ids, -1, axis=1)).long()
    probs = torch.full((*following.shape, VOCAB), 0.25 / (VOCAB - 1))
    probs.scatter_(-1, following[..., None], 0.75)
    noise = uniforms(0, torch.from_numpy(rows.sample_ids.copy()), ROW_LENGTH)
    payload = codec.encode(probs.log().flatten(0, 1), noise.flatten(0, 1))
    return payload.reshape(*following.shape, -1).numpy()


def make_planted(
    store: Store, rows: int = 23, rows_per_unit: int = 8, config: CodecConfig | None = None
) -> Planted:
    """The content of a cache; nothing of it is stored yet."""
    codec = make_codec(config or VaroptCodec(k=4, head=2), VOCAB)
    content = planted_rows(rows)
    generator = np.random.default_rng(1)
    stats = RowStats(
        content.sample_ids,
        generator.uniform(0, 4, rows).astype(np.float32),
        generator.uniform(0, 8, rows).astype(np.float32),
        content.loss_mask.sum(1).astype(np.int32),
    )
    identity = {
        "format": 1,
        "teacher": "ab" * 8,
        "tokenizer": "cd" * 8,
        "vocab_size": VOCAB,
        "data": "ef" * 8,
        "row_length": ROW_LENGTH,
        "codec": codec.describe(),
        "temperature": 1.0,
        "dtype": "float32",
        "rows": rows,
        "seed": 0,
    }
    return Planted(
        store,
        codec,
        identity,
        make_plan(rows, rows_per_unit),
        content,
        stats,
        planted_payload(codec, content),
    )


def assert_same_rows(found: Rows, expected: Rows) -> None:
    """All columns, value by value and type by type."""
    for name in ("sample_ids", "input_ids", "segment_ids", "loss_mask", "byte_counts"):
        left, right = getattr(found, name), getattr(expected, name)
        assert left.dtype == right.dtype, name
        assert np.array_equal(left, right), name
