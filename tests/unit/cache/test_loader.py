"""The same global batches for any ranks and workers; a resume loses nothing and repeats nothing."""

import json
import multiprocessing
import os
import signal
import threading
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdscale.cache.read.loader import CacheLoader
from kdscale.cache.read.order import EpochOrder
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows
from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store
from kdscale.train.batches import rank_rows
from tests.unit.cache.planted import Plant, assert_same_rows

ROWS, BATCH = 23, 5
ORDER = EpochOrder(ROWS, seed=7, chunk_rows=3, window_chunks=2)


def load(reader: CacheReader, **options: Any) -> CacheLoader:
    return CacheLoader(
        reader, **{"order": ORDER, "global_batch_size": BATCH, "workers": 1, **options}
    )


def sample_ids(batch: CachedRows) -> list[bytes]:
    return [row.tobytes() for row in batch.rows.sample_ids]


def read_global(
    reader: CacheReader, steps: int, world_size: int, workers: int, start: dict[str, int] | None
) -> tuple[list[list[bytes]], dict[str, int]]:
    """The sample ids of each global batch, put together from all ranks, and the state after."""
    batches: list[list[bytes]] = [[b""] * BATCH for _ in range(steps)]
    states = []
    for rank in range(world_size):
        loader = load(reader, rank=rank, world_size=world_size, workers=workers)
        if start is not None:
            loader.load_state_dict(start)
        for batch, mine in zip(batches, loader, strict=False):
            batch[rank::world_size] = sample_ids(mine)
            if batch is batches[-1]:
                break
        states.append(loader.state_dict())
    assert all(state == states[0] for state in states)
    return batches, states[0]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_global_batches_do_not_depend_on_ranks_and_workers(
    plant: Plant, world_size: int, workers: int
) -> None:
    """Two epochs and more, against the rows that were planted and today's rule for a rank's."""
    planted = plant(rows=ROWS).publish()
    reader = CacheReader(planted.store)
    for rank in range(world_size):
        loader = load(reader, rank=rank, world_size=world_size, workers=workers)
        for step, batch in enumerate(islice(loader, 11)):
            rows = ORDER.rows_at(np.arange(step * BATCH, (step + 1) * BATCH))
            mine = rank_rows(rows, rank, world_size)
            assert_same_rows(batch.rows, planted.rows.take(mine))
            assert np.array_equal(batch.payload, planted.payload[mine])
            assert np.array_equal(batch.entropy, planted.stats.entropy[mine])


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 1), (5, 8), (8, 5)])
def test_a_resume_at_any_step_and_world_size_loses_and_repeats_no_row(
    plant: Plant, workers: int, before: int, after: int
) -> None:
    planted = plant(rows=ROWS).publish()
    reader = CacheReader(planted.store)
    everything = sorted(row.tobytes() for row in planted.rows.sample_ids)
    undisturbed, end = read_global(reader, 14, 1, 0, None)
    for stop in range(1, 13):
        first, state = read_global(reader, stop, before, workers, None)
        assert state["step"] == stop
        restored = json.loads(json.dumps(state))
        second, final = read_global(reader, 14 - stop, after, 3 - workers, restored)
        assert first + second == undisturbed
        assert final == end
        stream = [row for batch in first + second for row in batch]
        for epoch in range(3):
            assert sorted(stream[epoch * ROWS : (epoch + 1) * ROWS]) == everything


def test_the_state_counts_what_was_handed_out_and_not_what_was_read_ahead(plant: Plant) -> None:
    counting = Counting(CacheReader(plant(rows=ROWS).publish().store))
    loader = load(counting, workers=3, ahead=6)  # type: ignore[arg-type]
    assert loader.state_dict() == {
        "version": 2,
        "seed": 7,
        "rows": ROWS,
        "chunk_rows": 3,
        "window_chunks": 2,
        "global_batch_size": BATCH,
        "step": 0,
    }
    batches = iter(loader)
    for step in range(3):
        next(batches)
        assert loader.state_dict()["step"] == step + 1
    batches.close()  # type: ignore[attr-defined]
    assert loader.state_dict()["step"] == 3
    # 6 ahead of the third: nine were taken, and as many read unless closing came first.
    assert 3 <= counting.batches <= 9


class Counting:
    """A reader that counts the batches it reads."""

    def __init__(self, reader: CacheReader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self.batches = 0.0

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, indices: np.ndarray) -> CachedRows:
        with self._lock:
            self.batches += len(indices) / BATCH
        return self._reader.read(indices)

    @property
    def row_bytes(self) -> int:
        return self._reader.row_bytes

    @property
    def metrics(self) -> dict[str, float]:
        return self._reader.metrics


@pytest.mark.parametrize("workers", [0, 3])
def test_a_state_is_honoured_before_after_and_during_an_iteration(
    plant: Plant, workers: int
) -> None:
    reader = CacheReader(plant(rows=ROWS).publish().store)
    expected = [sample_ids(batch) for batch in islice(load(reader), 12)]
    state = load(reader, start_step=4).state_dict()

    before = load(reader, workers=workers)
    before.load_state_dict(state)
    assert [sample_ids(batch) for batch in islice(before, 3)] == expected[4:7]

    made_first = load(reader, workers=workers)
    batches = iter(made_first)
    made_first.load_state_dict(state)
    assert [sample_ids(batch) for batch in islice(batches, 3)] == expected[4:7]

    during = load(reader, workers=workers)
    batches = iter(during)
    assert [sample_ids(batch) for batch in islice(batches, 9)] == expected[:9]
    during.load_state_dict(state)
    assert [sample_ids(batch) for batch in islice(batches, 3)] == expected[4:7]
    assert during.state_dict()["step"] == 7
    # The same position loaded again is no exception.
    during.load_state_dict(during.state_dict())
    assert sample_ids(next(batches)) == expected[7]


def test_a_second_loop_goes_on_where_the_first_stopped(plant: Plant) -> None:
    reader = CacheReader(plant(rows=ROWS).publish().store)
    expected = [sample_ids(batch) for batch in islice(load(reader), 6)]
    loader = load(reader, workers=3)
    for batch in loader:
        assert sample_ids(batch) == expected[0]
        break
    assert [sample_ids(batch) for batch in islice(loader, 5)] == expected[1:]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 8}, "seed: the state has 8, this loader 7"),
        ({"rows": 24}, "rows: the state has 24, this loader 23"),
        ({"version": 1}, "version: the state has 1, this loader 2"),
        ({"global_batch_size": 6}, "global_batch_size: the state has 6, this loader 5"),
        ({"window_chunks": 0}, "window_chunks: the state has 0, this loader 2"),
        ({"chunk_rows": None}, "chunk_rows: the state has None, this loader 3"),
        ({"step": "4"}, "another order"),
    ],
)
def test_a_state_of_another_order_is_refused(
    plant: Plant, change: dict[str, Any], named: str
) -> None:
    loader = load(CacheReader(plant(rows=ROWS).publish().store))
    with pytest.raises(KdscaleError) as caught:
        loader.load_state_dict(loader.state_dict() | {"step": 3} | change)
    assert named in caught.value.problem
    assert loader.state_dict()["step"] == 0


def test_all_that_differs_is_listed(plant: Plant) -> None:
    loader = load(CacheReader(plant(rows=ROWS).publish().store))
    with pytest.raises(KdscaleError) as caught:
        loader.load_state_dict({"step": 1, "version": 2})
    for name in ("seed", "rows", "chunk_rows", "window_chunks", "global_batch_size"):
        assert f"{name}: the state has None" in caught.value.problem
    assert "version:" not in caught.value.problem


def test_an_error_surfaces_at_its_batch_and_threads_end(plant: Plant) -> None:
    planted = plant(rows=ROWS).publish()
    planted.store.delete(CacheReader(planted.store).manifest.shards[2].object)
    first_bad = next(
        step
        for step in range(99)
        if ORDER.rows_at(np.arange(step * BATCH, (step + 1) * BATCH)).max() >= 16
    )
    batches = iter(load(CacheReader(planted.store), workers=3, ahead=9))
    for _ in range(first_bad):
        assert len(next(batches)) == BATCH
    with pytest.raises(KdscaleError, match="is missing"):
        next(batches)
    assert not [t.name for t in threading.enumerate() if "cache-ahead" in t.name]


def test_metrics_tell_tokens_waiting_and_where_chunks_were_found(plant: Plant) -> None:
    reader = CacheReader(plant(rows=ROWS).publish().store)
    loader = load(reader, workers=0, ahead=0)
    assert loader.metrics["tokens_per_second"] == loader.metrics["memory_hit_rate"] == 0
    # Two epochs: every chunk is fetched once.
    for _ in islice(loader, 10):
        pass
    metrics = loader.metrics
    assert metrics["tokens"] == 10 * BATCH * 16
    assert metrics["tokens_per_second"] > 0
    assert 0 < metrics["data_wait_share"] <= 1
    assert metrics["bytes_fetched"] == reader.metrics["bytes_fetched"] > 0
    rows = ORDER.rows_at(np.arange(10 * BATCH))
    # Shards of 8 rows in chunks of 3, 3 and 2.
    chunk_of = rows // 8 * 3 + rows % 8 // 3
    requests = sum(len(set(batch)) for batch in chunk_of.reshape(10, BATCH))
    chunks = len(set(chunk_of))
    assert metrics["chunks_fetched"] == chunks
    assert metrics["memory_hit_rate"] == pytest.approx((requests - chunks) / requests)
    assert metrics["disk_hit_rate"] == 0


@pytest.mark.slow
@pytest.mark.fault
def test_killed_ranks_are_resumed_by_another_number_of_them(plant: Plant, tmp_path: Path) -> None:
    """Real processes: two are killed in the middle of the epoch, with batches read ahead."""
    planted = plant(rows=ROWS).publish()
    start = load(CacheReader(planted.store)).state_dict()
    first, state = run_ranks(planted.store, 2, start, steps=3)
    second, _ = run_ranks(planted.store, 3, state, steps=7)
    stream = [row for batch in first + second for row in batch]
    everything = sorted(row.tobytes() for row in planted.rows.sample_ids)
    assert sorted(stream[:ROWS]) == sorted(stream[ROWS : 2 * ROWS]) == everything


def run_ranks(
    store: Store, world_size: int, state: dict[str, int], steps: int
) -> tuple[list[list[bytes]], dict[str, int]]:
    """Global batches of `steps` steps from real ranks, which are killed then."""
    context = multiprocessing.get_context("spawn")
    batches: list[list[bytes]] = [[b""] * BATCH for _ in range(steps)]
    for rank in range(world_size):
        ours, theirs = context.Pipe()
        process = context.Process(target=_rank, args=(theirs, str(store), rank, world_size, state))
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


def _rank(
    connection: Connection, url: str, rank: int, world_size: int, state: dict[str, int]
) -> None:
    loader = load(CacheReader(open_store(url)), rank=rank, world_size=world_size, workers=3)
    loader.load_state_dict(state)
    for batch in loader:
        connection.send((sample_ids(batch), loader.state_dict()))
