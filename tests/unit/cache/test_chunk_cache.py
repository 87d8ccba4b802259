"""The table of chunks: its budget, its errors, and where a chunk comes from."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdscale.cache.format.row_records import FixedRows
from kdscale.cache.read.chunk_cache import ChunkCache
from kdscale.cache.read.chunk_store import ChunkLoader
from kdscale.cache.read.disk_cache import DiskCache, MappedRows
from kdscale.cache.rows import CachedRows
from kdscale.errors import KdscaleError
from kdscale.types import Rows
from tests.forked import context
from tests.unit.cache.made import fixed

CHUNK_BYTES = 1000


def chunk(number: int, nbytes: int = CHUNK_BYTES) -> FixedRows:
    """Return a chunk of so many bytes whose payload is its number."""
    nothing = np.zeros(0, np.uint8)
    payload = np.full((1, 1, nbytes), number % 251, np.uint8)
    return FixedRows(Rows(*[nothing] * 5), payload, nothing, nothing, records=nothing)


def mapped(rows: FixedRows) -> MappedRows:
    return MappedRows(rows.rows, rows.payload, rows.entropy, rows.nll, rows.records)


def decoded(number: int) -> FixedRows:
    """Return a chunk of two rows, as it comes from decoding."""
    words = np.full((2, 3), number, np.int32)
    rows = Rows(np.zeros((2, 16), np.uint8), words, words, words > 5, np.ones(2))
    halves = np.full(2, 0.5, np.float32)
    return fixed(CachedRows(rows, np.full((2, 3, 4), number, np.uint8), halves, halves))


class Loads:
    """A load that counts, and that can be held at a gate."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.on_its_way = 0
        self.most_on_its_way = 0
        self._lock = threading.Lock()

    def __call__(self, number: int) -> tuple[FixedRows, int]:
        with self._lock:
            self.started.append(number)
            self.on_its_way += 1
            self.most_on_its_way = max(self.most_on_its_way, self.on_its_way)
        assert self.gate.wait(60)
        with self._lock:
            self.on_its_way -= 1
        return chunk(number), 10


def wait_for(condition: Callable[[], bool]) -> None:
    """Until another thread has made it true; the test's own time-out ends it."""
    while not condition():
        threading.Event().wait(0.001)


def test_chunks_come_in_the_order_asked_for() -> None:
    cache = ChunkCache(Loads(), memory_bytes=20 * CHUNK_BYTES)
    numbers = [5, 3, 3, 9, 0, 5]
    found = list(cache.stream(numbers))
    assert [number for number, _ in found] == numbers
    assert [int(rows.payload[0, 0, 0]) for _, rows in found] == numbers
    assert list(cache.stream([])) == []


def test_a_chunk_that_was_let_go_is_idle_at_once() -> None:
    """Its thread, however slow, has let it go before anybody has it."""

    class SlowThreads(ChunkCache):
        def _release(self, entries: Any) -> None:
            if threading.current_thread() is not threading.main_thread():
                threading.Event().wait(0.05)
            super()._release(entries)

    cache = SlowThreads(Loads(), memory_bytes=4 * CHUNK_BYTES)
    for number in range(3):
        list(cache.stream([number]))
        assert cache._idle_bytes == cache._held_bytes


@pytest.mark.parametrize("held", [1, 2, 3, 7])
def test_no_more_is_fetched_ahead_than_the_budget_holds(held: int) -> None:
    """While the first chunk is in use, `held` - 1 others are fetched and no more."""
    loads = Loads()
    cache = ChunkCache(loads, memory_bytes=held * CHUNK_BYTES)
    list(cache.stream([99]))
    stream = cache.stream(range(20))
    for position, _ in enumerate(stream):
        expected = min(20, position + held)
        wait_for(lambda: cache.fetched >= 1 + expected)  # noqa: B023 - called at once
        assert sorted(loads.started[1:]) == list(range(expected))
        assert cache.nbytes <= held * CHUNK_BYTES


def test_the_first_chunk_is_fetched_alone_because_its_size_is_not_known() -> None:
    loads = Loads()
    loads.gate.clear()
    cache = ChunkCache(loads, memory_bytes=50 * CHUNK_BYTES)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: [number for number, _ in cache.stream(range(5))])
        wait_for(lambda: loads.started == [0])
        assert cache.nbytes == 50 * CHUNK_BYTES
        loads.gate.set()
        assert answer.result(60) == [0, 1, 2, 3, 4]
    assert cache.nbytes == 5 * CHUNK_BYTES


@pytest.mark.parametrize("memory_bytes", [1, CHUNK_BYTES, 3 * CHUNK_BYTES + 1])
def test_many_threads_with_little_room_neither_wait_for_ever_nor_exceed_it(
    memory_bytes: int,
) -> None:
    """At most the budget, or one chunk; sampled by every load, when the most is on its way."""
    seen: list[int] = []

    def load(number: int) -> tuple[FixedRows, int]:
        seen.append(cache.nbytes)
        return chunk(number), 1

    cache = ChunkCache(load, memory_bytes)

    def read(seed: int) -> bool:
        numbers = np.random.default_rng(seed).integers(0, 12, 100).tolist()
        found = cache.stream(numbers)
        return all(int(rows.payload[0, 0, 0]) == number for number, rows in found)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(6)))
    assert max(seen) <= max(memory_bytes, CHUNK_BYTES)
    assert cache.nbytes <= memory_bytes


def test_a_chunk_in_use_is_not_dropped_and_an_idle_one_is() -> None:
    loads = Loads()
    cache = ChunkCache(loads, memory_bytes=2 * CHUNK_BYTES)
    using = cache.stream([0])
    next(using)
    for number in (1, 2, 3):
        list(cache.stream([number]))
    list(cache.stream([0]))
    assert loads.started == [0, 1, 2, 3]
    assert list(using) == []
    list(cache.stream([4]))
    list(cache.stream([0]))
    assert loads.started == [0, 1, 2, 3, 4]
    list(cache.stream([3]))
    assert loads.started == [0, 1, 2, 3, 4, 3]


def test_an_abandoned_stream_gives_its_room_back() -> None:
    loads = Loads()
    cache = ChunkCache(loads, memory_bytes=3 * CHUNK_BYTES)
    list(cache.stream([50]))
    for first in range(0, 30, 3):
        stream = cache.stream(range(first, first + 3))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert [number for number, _ in cache.stream(range(40, 50))] == list(range(40, 50))
    assert cache.nbytes <= 3 * CHUNK_BYTES


def test_an_error_reaches_all_who_wait_and_nobody_else() -> None:
    loads = Loads()
    repaired = False

    def load(number: int) -> tuple[FixedRows, int]:
        answer = loads(number)
        if number == 7 and not repaired:
            raise KdscaleError("shard-000001 is corrupt", "repair it")
        return answer

    cache = ChunkCache(load, memory_bytes=4 * CHUNK_BYTES)
    list(cache.stream([0]))
    loads.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        broken = [pool.submit(lambda: list(cache.stream([7, 1]))) for _ in range(2)]
        # Both wait for the one fetch of chunk 7.
        wait_for(lambda: cache.hits >= 2)
        fine = pool.submit(lambda: [number for number, _ in cache.stream([2, 3])])
        loads.gate.set()
        for answer in broken:
            with pytest.raises(KdscaleError, match="shard-000001 is corrupt"):
                answer.result(60)
        assert fine.result(60) == [2, 3]
    assert loads.started.count(7) == 1
    repaired = True
    assert [number for number, _ in cache.stream([7])] == [7]
    assert cache.nbytes <= 4 * CHUNK_BYTES


def test_errors_leave_no_room_taken() -> None:
    def load(number: int) -> tuple[FixedRows, int]:
        if number % 2:
            raise OSError(f"chunk {number}")
        return chunk(number), 1

    cache = ChunkCache(load, memory_bytes=2 * CHUNK_BYTES)
    for number in range(1, 40, 2):
        with pytest.raises(OSError, match=f"chunk {number}"):
            list(cache.stream([number - 1, number, number + 1]))
    list(cache.stream([100, 102]))
    assert cache.nbytes == 2 * CHUNK_BYTES


def test_mapped_chunks_count_an_eighth_once_they_are_there() -> None:
    loads = Loads()

    def load(number: int) -> tuple[FixedRows, int]:
        return mapped(loads(number)[0]), 0

    cache = ChunkCache(load, memory_bytes=10 * CHUNK_BYTES)
    list(cache.stream(range(16)))
    assert cache.nbytes == 16 * CHUNK_BYTES // 8
    # On the way: a whole chunk for each of the 8 threads, an eighth for those in the queue.
    loads.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: len(list(cache.stream(range(100, 200)))))
        wait_for(lambda: len(loads.started) == 16 + 8)
        wait_for(lambda: cache.nbytes == 10 * CHUNK_BYTES)
        loads.gate.set()
        assert answer.result(60) == 100
    assert loads.most_on_its_way == 8
    assert 2 * CHUNK_BYTES <= cache.nbytes <= 10 * CHUNK_BYTES


def test_there_are_at_most_8192_mappings() -> None:
    def load(number: int) -> tuple[FixedRows, int]:
        return mapped(chunk(number, nbytes=8)), 0

    cache = ChunkCache(load, memory_bytes=8192 * 100)
    list(cache.stream(range(300)))
    assert cache.nbytes == 300 * 100


def test_metrics_count_every_request_once() -> None:
    def load(number: int) -> tuple[FixedRows, int]:
        return chunk(number), 0 if number >= 10 else 30

    cache = ChunkCache(load, memory_bytes=20 * CHUNK_BYTES)
    for number in (0, 1, 10, 0, 0):
        list(cache.stream([number]))
    assert cache.metrics == {
        "chunks_fetched": 2,
        "bytes_fetched": 60,
        "chunk_hits": 2,
        "disk_hits": 1,
    }


class StoredChunks:
    """Chunks in a store that notes in a file, shared by processes, what is fetched from it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._log.touch()

    @property
    def fetched(self) -> list[int]:
        return sorted(map(int, self._log.read_text().split()))

    def key(self, number: int) -> str:
        return f"{number:032x}-0007"

    def fetch(self, number: int) -> bytes:
        with self._log.open("a") as file:
            file.write(f"{number}\n")
        return bytes([number]) * 70

    def decode(self, number: int, data: bytes) -> FixedRows:
        assert data == bytes([number]) * 70
        return decoded(number)


@pytest.fixture
def store(tmp_path: Path) -> StoredChunks:
    return StoredChunks(tmp_path / "fetched")


def test_a_chunk_comes_from_the_store_once_and_then_from_the_disk(
    tmp_path: Path, store: StoredChunks
) -> None:
    first = ChunkLoader(store, DiskCache(tmp_path, 1 << 20))
    rows, nbytes = first.load(5)
    assert nbytes == 70
    assert first.decode_seconds > 0
    # What was written is used from the disk at once, not from memory of its own.
    assert isinstance(rows, MappedRows)
    restarted = ChunkLoader(store, DiskCache(tmp_path, 1 << 20))
    again, nbytes = restarted.load(5)
    assert nbytes == 0
    assert np.array_equal(again.payload, decoded(5).payload)
    assert restarted.decode_seconds == 0
    assert store.fetched == [5]


def test_without_a_disk_or_with_one_too_small_the_chunk_comes_from_the_store(
    tmp_path: Path, store: StoredChunks
) -> None:
    small = ChunkLoader(store, DiskCache(tmp_path, 100))
    for source in (small, small, ChunkLoader(store, None)):
        rows, nbytes = source.load(3)
        assert nbytes == 70
        assert not isinstance(rows, MappedRows)
        assert np.array_equal(rows.payload, decoded(3).payload)
    assert store.fetched == [3, 3, 3]


def test_a_damaged_copy_on_the_disk_is_fetched_again(tmp_path: Path, store: StoredChunks) -> None:
    ChunkLoader(store, DiskCache(tmp_path, 1 << 20)).load(5)
    (copy,) = (tmp_path / "chunks").iterdir()
    copy.write_bytes(copy.read_bytes()[:-1] + b"\xff")
    rows, nbytes = ChunkLoader(store, DiskCache(tmp_path, 1 << 20)).load(5)
    assert nbytes == 70
    assert np.array_equal(rows.payload, decoded(5).payload)
    assert ChunkLoader(store, DiskCache(tmp_path, 1 << 20)).load(5)[1] == 0
    assert store.fetched == [5, 5]


def test_threads_of_several_sources_fetch_a_chunk_once(tmp_path: Path, store: StoredChunks) -> None:
    sources = [ChunkLoader(store, DiskCache(tmp_path, 1 << 20)) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: sources[number % 4].load(number // 8), range(64)))
    assert store.fetched == list(range(8))
    assert [int(rows.payload[0, 0, 0]) for rows, _ in answers] == [n // 8 for n in range(64)]


def test_processes_that_share_a_disk_fetch_a_chunk_once(
    tmp_path: Path, store: StoredChunks
) -> None:
    barrier = context.Barrier(3)
    workers = [context.Process(target=_load_all, args=(tmp_path, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert store.fetched == list(range(12))


def _load_all(folder: Path, barrier: Any) -> None:
    source = ChunkLoader(StoredChunks(folder / "fetched"), DiskCache(folder, 1 << 20))
    for number in range(12):
        barrier.wait(60)
        assert int(source.load(number)[0].payload[0, 0, 0]) == number


def test_who_fails_to_fetch_frees_the_others(tmp_path: Path, store: StoredChunks) -> None:
    class Away(StoredChunks):
        def fetch(self, number: int) -> bytes:
            raise OSError("the store is away")

    away = ChunkLoader(Away(tmp_path / "nothing"), DiskCache(tmp_path, 1 << 20))
    with pytest.raises(OSError, match="the store is away"):
        away.load(1)
    assert ChunkLoader(store, DiskCache(tmp_path, 1 << 20)).load(1)[1] == 70
