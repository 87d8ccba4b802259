"""The same global batches for any ranks and threads; a resume loses and repeats no sequence."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdscale.cache.read.loader import CacheLoader, read_batches
from kdscale.cache.read.order import EpochOrder
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows
from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store
from tests.unit.cache.planted import Plant, assert_same_rows

ROWS, BATCH = 23, 5
ORDER = EpochOrder(ROWS, seed=7, chunk_rows=3, window_chunks=2)


def load(reader: Any, *, start_step: int = 0, **options: Any) -> CacheLoader:
    batches = ORDER.batches(BATCH, start_step)
    return CacheLoader(reader, batches, start_step=start_step, **{"threads": 1, **options})


def sample_ids(batch: CachedRows) -> list[bytes]:
    return [row.tobytes() for row in batch.rows.sample_ids]


def read_global(
    reader: CacheReader, start: int, steps: int, world_size: int, threads: int
) -> list[list[bytes]]:
    """Return the sample ids of each global batch, put together from all ranks."""
    batches: list[list[bytes]] = [[b""] * BATCH for _ in range(steps)]
    for rank in range(world_size):
        loader = load(reader, rank=rank, world_size=world_size, threads=threads, start_step=start)
        for step, loaded in enumerate(islice(loader, steps)):
            assert loaded.step == start + step
            valid = sample_ids(loaded.sequences)[: int(loaded.valid.sum())]
            batches[step][rank::world_size] = valid
    return batches


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_global_batches_do_not_depend_on_ranks_and_threads(
    plant: Plant, world_size: int, threads: int
) -> None:
    """Two epochs and more, against the planted rows; the first fills up a share that is short."""
    planted = plant(rows=ROWS).publish()
    reader = CacheReader(planted.store)
    for rank in range(world_size):
        loader = load(reader, rank=rank, world_size=world_size, threads=threads)
        for step, batch in enumerate(islice(loader, 11)):
            rows = ORDER.rows_at(np.arange(step * BATCH, (step + 1) * BATCH))
            assert np.array_equal(batch.indices, rows)
            mine = rows[rank::world_size].tolist()
            missing = -(-BATCH // world_size) - len(mine)
            filled = np.array(mine + [rows[0]] * missing)
            assert batch.valid.tolist() == [True] * len(mine) + [False] * missing
            assert_same_rows(batch.sequences.rows, planted.rows.take(filled))
            assert np.array_equal(batch.sequences.payload, planted.payload[filled])
            assert np.array_equal(batch.sequences.entropy, planted.stats.entropy[filled])


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 1), (5, 8), (8, 5)])
def test_a_resume_at_any_step_and_world_size_loses_and_repeats_no_sequence(
    plant: Plant, threads: int, before: int, after: int
) -> None:
    planted = plant(rows=ROWS).publish()
    reader = CacheReader(planted.store)
    everything = sorted(row.tobytes() for row in planted.rows.sample_ids)
    undisturbed = read_global(reader, 0, 14, 1, 0)
    for stop in range(1, 13):
        first = read_global(reader, 0, stop, before, threads)
        second = read_global(reader, stop, 14 - stop, after, 3 - threads)
        assert first + second == undisturbed
        stream = [row for batch in first + second for row in batch]
        for epoch in range(3):
            assert sorted(stream[epoch * ROWS : (epoch + 1) * ROWS]) == everything


def test_no_more_is_read_than_the_prefetch_allows(plant: Plant) -> None:
    recording = Recording(CacheReader(plant(rows=ROWS).publish().store))
    batches = iter(load(recording, threads=3, prefetch=6))
    for step in range(3):
        assert next(batches).step == step
    batches.close()  # type: ignore[attr-defined]
    # 6 ahead of the third: nine were taken, and as many read unless closing came first.
    assert 3 * BATCH <= sum(recording.sizes) <= 9 * BATCH
    assert not [t.name for t in threading.enumerate() if "cache-ahead" in t.name]


class Recording:
    """A reader that records how many rows each read asks for, and fails at one row."""

    def __init__(self, reader: CacheReader, bad: int | None = None) -> None:
        self._reader = reader
        self._bad = bad
        self.sizes: list[int] = []

    def read(self, indices: np.ndarray) -> CachedRows:
        self.sizes.append(len(indices))
        if self._bad in indices:
            raise ValueError(f"row {self._bad}")
        return self._reader.read(indices)

    @property
    def row_bytes(self) -> int:
        return 99


def test_by_default_as_many_are_read_ahead_as_256_mib_hold(plant: Plant) -> None:
    reader = CacheReader(plant(rows=ROWS).publish().store)
    taken: list[int] = []

    class Large(Recording):
        @property
        def row_bytes(self) -> int:
            return (256 << 20) // (6 * BATCH)

    def batches() -> Iterator[np.ndarray]:
        for indices in ORDER.batches(BATCH):
            taken.append(len(indices))
            yield indices

    next(iter(CacheLoader(Large(reader), batches())))
    assert len(taken) == 1 + 6
    (only,) = CacheLoader(reader, [np.array([3, 1])])
    assert np.array_equal(only.indices, [3, 1])
    assert list(CacheLoader(reader, [])) == []


def test_an_error_surfaces_at_its_batch_and_threads_end(plant: Plant) -> None:
    planted = plant(rows=ROWS).publish()
    planted.store.delete(CacheReader(planted.store).manifest.shards[2].object)
    first_bad = next(
        step
        for step in range(99)
        if ORDER.rows_at(np.arange(step * BATCH, (step + 1) * BATCH)).max() >= 16
    )
    batches = iter(load(CacheReader(planted.store), threads=3, prefetch=9))
    for _ in range(first_bad):
        assert len(next(batches).valid) == BATCH
    with pytest.raises(KdscaleError, match="is missing"):
        next(batches)
    assert not [t.name for t in threading.enumerate() if "cache-ahead" in t.name]


def test_metrics_count_where_chunks_were_found(plant: Plant) -> None:
    reader = CacheReader(plant(rows=ROWS).publish().store)
    # Two epochs: every chunk is fetched once.
    for _ in islice(load(reader, threads=0, prefetch=0), 10):
        pass
    rows = ORDER.rows_at(np.arange(10 * BATCH))
    # Shards of 8 rows in chunks of 3, 3 and 2.
    chunk_of = rows // 8 * 3 + rows % 8 // 3
    requests = sum(len(set(batch)) for batch in chunk_of.reshape(10, BATCH))
    chunks = len(set(chunk_of))
    assert reader.metrics["chunks_fetched"] == chunks
    assert reader.metrics["chunk_hits"] == requests - chunks
    assert reader.metrics["disk_hits"] == 0
    assert reader.metrics["bytes_fetched"] > 0


@pytest.mark.slow
@pytest.mark.fault
def test_killed_ranks_are_resumed_by_another_number_of_them(plant: Plant, tmp_path: Path) -> None:
    """Real processes: two are killed in the middle of the epoch, with batches read ahead."""
    planted = plant(rows=ROWS).publish()
    first, step = run_ranks(planted.store, 2, 0, steps=3)
    second, _ = run_ranks(planted.store, 3, step, steps=7)
    stream = [row for batch in first + second for row in batch]
    everything = sorted(row.tobytes() for row in planted.rows.sample_ids)
    assert sorted(stream[:ROWS]) == sorted(stream[ROWS : 2 * ROWS]) == everything


def run_ranks(
    store: Store, world_size: int, start: int, steps: int
) -> tuple[list[list[bytes]], int]:
    """Global batches of `steps` steps from real ranks, which are killed then."""
    context = multiprocessing.get_context("spawn")
    batches: list[list[bytes]] = [[b""] * BATCH for _ in range(steps)]
    for rank in range(world_size):
        ours, theirs = context.Pipe()
        process = context.Process(target=_rank, args=(theirs, str(store), rank, world_size, start))
        process.start()
        theirs.close()
        try:
            for batch in batches:
                assert ours.poll(60), "the rank does not answer"
                batch[rank::world_size], after = ours.recv()
        finally:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
    return batches, after


def _rank(connection: Connection, url: str, rank: int, world_size: int, start: int) -> None:
    reader = CacheReader(open_store(url))
    for batch in load(reader, rank=rank, world_size=world_size, threads=3, start_step=start):
        valid = sample_ids(batch.sequences)[: int(batch.valid.sum())]
        connection.send((valid, batch.step + 1))


def orders(count: int, rows: int = 23) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, rows, size) for size in generator.integers(0, 6, count)]


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("ahead", [0, 1, 2, 7, 100])
def test_every_batch_is_the_one_read_by_itself(plant: Plant, threads: int, ahead: int) -> None:
    reader = CacheReader(plant().publish().store)
    wanted = orders(40)
    found = list(read_batches(reader, iter(wanted), threads=threads, prefetch=ahead))
    assert len(found) == 40
    for batch, order in zip(found, wanted, strict=True):
        expected = reader.read(order)
        assert_same_rows(batch.rows, expected.rows)
        for name in ("payload", "entropy", "nll"):
            assert np.array_equal(getattr(batch, name), getattr(expected, name))


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("ahead", [0, 1, 5, 40])
def test_no_more_orders_are_taken_than_asked_for(plant: Plant, threads: int, ahead: int) -> None:
    reader = CacheReader(plant().publish().store)
    taken: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            taken.append(len(taken))
            yield np.array([len(taken) % 23])

    batches = read_batches(reader, endless(), threads=threads, prefetch=ahead)
    for number in range(60):
        next(batches)
        assert len(taken) <= number + 1 + ahead
    batches.close()


def test_the_first_read_is_one_batch_and_the_next_ever_more(plant: Plant) -> None:
    reader = CacheReader(plant().publish().store)
    recording = Recording(reader)
    wanted = [np.arange(4)] * 31
    assert len(list(read_batches(recording, wanted, threads=0, prefetch=15))) == 31
    assert recording.sizes == [4, 8, 16, 32, 64]


def test_an_error_in_a_group_reaches_its_own_batch_alone(plant: Plant) -> None:
    reader = CacheReader(plant().publish().store)
    recording = Recording(reader, bad=22)
    wanted = [np.array([0]), np.array([1]), np.array([2]), np.array([3]), np.array([22])]
    batches = read_batches(recording, wanted, threads=0, prefetch=7)
    assert [int(next(batches).rows.input_ids[0, 0]) for _ in range(4)] == [
        int(reader.read(np.array([row])).rows.input_ids[0, 0]) for row in range(4)
    ]
    with pytest.raises(ValueError, match="row 22"):
        next(batches)
    # One, then two, then what was left together, and again one by one for the error.
    assert recording.sizes == [1, 2, 2, 1, 1]
