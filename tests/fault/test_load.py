"""Many at once on one S3 server: 50 processes read a cache while 8 others fill another."""

import uuid
from multiprocessing.synchronize import Barrier

import numpy as np
import pytest

from kdscale.cache.maintain.verify import verify
from kdscale.cache.read.loader import read_batches
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows
from kdscale.store import Store, open_store
from tests.fault.captures import capture
from tests.fault.conftest import Start
from tests.fault.outcome import assert_same, decoded, rows_of
from tests.fault.processes import Pipe, meeting
from tests.s3 import S3Server
from tests.unit.cache.planted import Planted, make_planted

pytestmark = [pytest.mark.fault, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(300)]

READERS, WRITERS = 50, 8
ROWS, ROWS_PER_SHARD = 320, 8
SHARDS = ROWS // ROWS_PER_SHARD
BATCH_ROWS = 32


def read_epoch(pipe: Pipe, store: Store, seed: int, expected: CachedRows, start: Barrier) -> int:
    """Read every row once in a random order and compare it; return the number of rows."""
    start.wait()
    reader = CacheReader(store)
    order = np.random.default_rng(seed).permutation(len(reader))
    orders = np.array_split(order, len(order) // BATCH_ROWS)
    rows = 0
    for batch, at in zip(read_batches(reader, orders, prefetch=2), orders, strict=True):
        assert_same(batch, rows_of(expected, at))
        rows += len(at)
    return rows


def fill(pipe: Pipe, planted: Planted, start: Barrier) -> int:
    """Capture the whole plan, as if alone; return the shards that it committed."""
    start.wait()
    return capture(pipe, planted)


def test_fifty_readers_and_eight_writers_at_once_lose_and_repeat_nothing(
    s3_env: S3Server, start: Start
) -> None:
    stores = [open_store(f"{s3_env.url}/{uuid.uuid4().hex}") for _ in range(2)]
    full, growing = (make_planted(s, rows=ROWS, sequences_per_shard=ROWS_PER_SHARD) for s in stores)
    full.publish()
    expected = decoded(full.store)
    together = meeting(READERS + WRITERS)
    writers = [start(fill, growing, together) for _ in range(WRITERS)]
    readers = [start(read_epoch, full.store, seed, expected, together) for seed in range(READERS)]
    assert [reader.result() for reader in readers] == [ROWS] * READERS
    assert sum(writer.result() for writer in writers) == SHARDS
    assert growing.store.list("commits/") == [f"commits/{n:06d}.json" for n in range(SHARDS)]
    report = verify(growing.store)
    assert (report.bad, report.shards) == ([], SHARDS)
    assert_same(decoded(growing.store), expected)
