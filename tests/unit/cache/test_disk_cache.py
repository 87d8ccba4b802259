"""The local disk cache among real processes: shared, bounded, and never wrong."""

import fcntl
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdscale.cache.format.row_records import FixedRows
from kdscale.cache.read import disk_cache as disk
from kdscale.cache.read.disk_cache import DiskCache, MappedRows
from kdscale.cache.rows import CachedRows
from kdscale.types import Rows
from tests.forked import context as forked
from tests.unit.cache.made import fixed, make_rows

ROWS, LENGTH, WIDTH = 5, 33, 7


def make_chunk(seed: int, rows: int = ROWS) -> FixedRows:
    """Odd sizes, so that alignment matters."""
    return fixed(make_rows(rows, LENGTH, WIDTH, seed))


def arrays(chunk: CachedRows) -> dict[str, np.ndarray]:
    own = {f.name: getattr(chunk, f.name) for f in fields(CachedRows) if f.name != "rows"}
    rows = {f.name: getattr(chunk.rows, f.name) for f in fields(Rows)}
    return own | {name: array for name, array in rows.items() if array is not None}


def assert_same(found: CachedRows | None, expected: CachedRows) -> None:
    assert isinstance(found, MappedRows)
    for name, array in arrays(expected).items():
        assert arrays(found)[name].dtype == array.dtype, name
        assert np.array_equal(arrays(found)[name], array), name


def file_bytes(folder: Path) -> int:
    """Of one chunk of `make_chunk`."""
    DiskCache(folder / "measure", 1 << 30).put("ab", make_chunk(0))
    (file,) = (folder / "measure/chunks").iterdir()
    size = file.stat().st_size
    shutil.rmtree(folder / "measure")
    return size


def kept(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "chunks").glob("*.blk")}


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "chunks").iterdir())


@contextmanager
def child(function: Any, *arguments: Any) -> Iterator[tuple[Any, Connection]]:
    """`function(connection, *arguments)` in a process of its own, which is killed at the end."""
    ours, theirs = forked.Pipe()
    process = forked.Process(target=function, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()


def receive(connection: Connection) -> Any:
    assert connection.poll(60), "the child does not answer"
    return connection.recv()


def test_a_chunk_comes_back_as_views_of_its_file(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    assert cache.get("ab-01") is None
    cache.put("ab-01", make_chunk(1))
    found = cache.get("ab-01")
    assert_same(found, make_chunk(1))
    assert found is not None
    for name, array in arrays(found).items():
        assert not array.flags.writeable, name
        assert not array.flags.owndata, name
        assert array.flags.aligned, name
    assert found.records.ctypes.data % 64 == 0
    # They outlive the file, and no descriptor stays open for them.
    (tmp_path / "chunks/ab-01.blk").unlink()
    assert_same(found, make_chunk(1))
    assert not any("ab-01" in os.readlink(f"/proc/self/fd/{fd}") for fd in open_files())


def open_files() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


def test_chunks_are_there_after_a_restart_and_for_other_processes(tmp_path: Path) -> None:
    with child(_put_and_get, tmp_path, ["aa"], ["bb"]) as (_, first):
        assert receive(first) == [None]
        with child(_put_and_get, tmp_path, ["bb"], ["aa"]) as (_, second):
            assert receive(second) == [make_chunk(0).payload.tobytes()]
    assert_same(DiskCache(tmp_path, 1 << 20).get("bb"), make_chunk(0))
    assert_same(pickle.loads(pickle.dumps(DiskCache(tmp_path, 1 << 20))).get("aa"), make_chunk(0))


def _put_and_get(connection: Connection, folder: Path, puts: list[str], gets: list[str]) -> None:
    cache = DiskCache(folder, 1 << 20)
    for key in puts:
        cache.put(key, make_chunk(0))
    found = [cache.get(key) for key in gets]
    connection.send([rows and rows.payload.tobytes() for rows in found])
    connection.recv()


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    size = file_bytes(tmp_path)
    # Ten chunks and the tenth part of one: a sweep leaves room for one more than is needed.
    cache = DiskCache(tmp_path, 10 * size + size // 10)
    for number in range(10):
        cache.put(f"{number:02}", make_chunk(number))
    assert kept(tmp_path) == {f"{number:02}" for number in range(10)}
    for number in (0, 3):
        assert_same(cache.get(f"{number:02}"), make_chunk(number))
    cache.put("10", make_chunk(10))
    assert kept(tmp_path) == {f"{number:02}" for number in (0, 3, 4, 5, 6, 7, 8, 9, 10)} - {"02"}
    cache.put("11", make_chunk(11))
    cache.put("12", make_chunk(12))
    assert kept(tmp_path) == {f"{number:02}" for number in (0, 3, 6, 7, 8, 9, 10, 11, 12)} - {"04"}
    assert used(tmp_path) <= 10 * size + size // 10


def test_a_use_in_one_process_keeps_a_chunk_that_another_would_drop(tmp_path: Path) -> None:
    size = file_bytes(tmp_path)
    ours = DiskCache(tmp_path, 4 * size + size // 2)
    for number in range(4):
        ours.put(f"{number:02}", make_chunk(0))
    with child(_put_and_get, tmp_path, [], ["00"]) as (_, connection):
        assert receive(connection) == [make_chunk(0).payload.tobytes()]
    ours.put("04", make_chunk(0))
    assert kept(tmp_path) == {"00", "02", "03", "04"}


def test_several_processes_stay_within_the_bound_together(tmp_path: Path) -> None:
    size = file_bytes(tmp_path)
    bound = 6 * size
    context = [child(_fill, tmp_path, bound, worker) for worker in range(3)]
    with context[0] as (_, a), context[1] as (_, b), context[2] as (_, c):
        peaks = [receive(connection) for connection in (a, b, c)]
    assert max(peaks) <= bound
    assert 4 * size <= used(tmp_path) <= bound
    for key in kept(tmp_path):
        assert_same(DiskCache(tmp_path, bound).get(key), make_chunk(int(key)))


def _fill(connection: Connection, folder: Path, bound: int, worker: int) -> None:
    cache, peak = DiskCache(folder, bound), 0
    for number in range(worker * 100, worker * 100 + 40):
        cache.put(f"{number}", make_chunk(number))
        peak = max(peak, _settled(folder))
    connection.send(peak)


def _settled(folder: Path) -> int:
    """Bytes in use while nobody may make room or take any. Renames go on, so by inode."""
    with (folder / "used").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sizes = {}
        for path in (folder / "chunks").iterdir():
            with suppress(FileNotFoundError):
                found = path.stat()
                sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


def test_the_folder_is_not_listed_at_every_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = file_bytes(tmp_path)
    sweeps: list[int] = []
    sweep = DiskCache._sweep
    monkeypatch.setattr(
        DiskCache, "_sweep", lambda self, wanted: (sweeps.append(wanted), sweep(self, wanted))[1]
    )
    cache = DiskCache(tmp_path, 64 * size)
    for number in range(64):
        cache.put(f"{number}", make_chunk(0))
    # One for the process; then each frees a sixteenth, that is 4 chunks and the one to come.
    assert len(sweeps) == 1
    for number in range(64, 104):
        cache.put(f"{number}", make_chunk(0))
    assert len(sweeps) == 1 + 40 // 5


def test_a_chunk_larger_than_the_folder_is_not_kept(tmp_path: Path) -> None:
    size = file_bytes(tmp_path)
    cache = DiskCache(tmp_path, size - 1)
    cache.put("ab", make_chunk(0))
    assert cache.get("ab") is None
    exact = DiskCache(tmp_path, size)
    exact.put("ab", make_chunk(0))
    exact.put("cd", make_chunk(1))
    assert_same(exact.get("cd"), make_chunk(1))
    assert kept(tmp_path) == {"cd"}


def test_every_flipped_bit_is_found_and_the_file_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    cache.put("ab", make_chunk(0))
    file = tmp_path / "chunks/ab.blk"
    good = file.read_bytes()
    for at in [*range(64), *range(64, len(good), 53), len(good) - 1]:
        file.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        assert DiskCache(tmp_path, 1 << 20).get("ab") is None, at
        assert not file.exists(), at
    assert "ab.blk" in caplog.text
    assert "fetched again" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"",
        lambda good: good[:10],
        lambda good: good[:24],
        lambda good: good[: len(good) // 2],
        lambda good: good[:-1],
        lambda good: good + b"\0",
        lambda good: b"GIF89a" + good[6:],
        lambda good: np.random.default_rng(0).bytes(len(good)),
    ],
)
def test_truncated_and_foreign_files_are_misses(tmp_path: Path, damage: Any) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    cache.put("ab", make_chunk(0))
    file = tmp_path / "chunks/ab.blk"
    file.write_bytes(damage(file.read_bytes()))
    restarted = DiskCache(tmp_path, 1 << 20)
    assert restarted.get("ab") is None
    assert not file.exists()
    restarted.put("ab", make_chunk(0))
    assert_same(restarted.get("ab"), make_chunk(0))


def test_a_file_under_the_name_of_another_chunk_is_a_miss(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    cache.put("ab", make_chunk(0))
    (tmp_path / "chunks/ab.blk").rename(tmp_path / "chunks/cd.blk")
    assert cache.get("cd") is None
    assert cache.get("ab") is None


def test_damage_after_the_first_use_is_found_when_the_file_is_another(tmp_path: Path) -> None:
    """A process verifies a file once; one that was put in its place is verified too."""
    cache = DiskCache(tmp_path, 1 << 20)
    cache.put("ab", make_chunk(0))
    file = tmp_path / "chunks/ab.blk"
    assert_same(cache.get("ab"), make_chunk(0))
    bad = bytearray(file.read_bytes())
    bad[-100] ^= 1
    (tmp_path / "other").write_bytes(bad)
    (tmp_path / "other").replace(file)
    assert cache.get("ab") is None


def test_a_count_of_bytes_that_is_lost_or_wrong_is_set_right(tmp_path: Path) -> None:
    size = file_bytes(tmp_path)
    bound = 4 * size + size // 2
    for count in (b"", b"garbage", bytes(8), b"\xff" * 8):
        for number in range(4):
            DiskCache(tmp_path, bound).put(f"{number}", make_chunk(0))
        (tmp_path / "used").write_bytes(count)
        cache = DiskCache(tmp_path, bound)
        for number in range(10, 14):
            cache.put(f"{number}", make_chunk(0))
        assert used(tmp_path) <= bound
        assert kept(tmp_path) == {"10", "11", "12", "13"}


@pytest.mark.fault
def test_a_writer_killed_in_the_middle_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    with child(_stop_before_the_rename, tmp_path) as (process, connection):
        assert receive(connection) == "written"
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (leftover,) = (tmp_path / "chunks").iterdir()
    assert leftover.suffix == ".tmp"
    cache = DiskCache(tmp_path, 1 << 20)
    assert cache.get("ab") is None
    # No lock is left either: the next one writes at once, and leaves a young file alone.
    cache.put("ab", make_chunk(0))
    assert_same(cache.get("ab"), make_chunk(0))
    assert leftover.exists()
    old = time.time() - 2 * disk._GRACE_SECONDS
    os.utime(leftover, (old, old))
    DiskCache(tmp_path, 1 << 20).put("cd", make_chunk(1))
    assert not leftover.exists()
    assert kept(tmp_path) == {"ab", "cd"}


def _stop_before_the_rename(connection: Connection, folder: Path) -> None:
    def stop(*_: Any) -> None:
        connection.send("written")
        signal.pause()

    os.replace = stop
    DiskCache(folder, 1 << 20).put("ab", make_chunk(0))


@pytest.mark.fault
def test_killed_writers_never_leave_the_folder_broken(tmp_path: Path) -> None:
    """Killed at whatever point they have reached after some puts, with the folder full."""
    bound = 8 * file_bytes(tmp_path)
    for attempt in range(6):
        with child(_write_for_ever, tmp_path, bound) as (process, connection):
            for _ in range(attempt + 2):
                receive(connection)
            os.kill(process.pid, signal.SIGKILL)
            process.join(60)
    cache = DiskCache(tmp_path, bound)
    cache.put("9999", make_chunk(9999))
    assert used(tmp_path) <= bound
    for key in kept(tmp_path):
        assert_same(cache.get(key), make_chunk(int(key)))
    assert "9999" in kept(tmp_path)


def _write_for_ever(connection: Connection, folder: Path, bound: int) -> None:
    cache = DiskCache(folder, bound)
    number = 0
    while True:
        number += 1
        cache.put(f"{number}", make_chunk(number))
        connection.send(number)


@pytest.mark.fault
@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_who_waits_for_a_chunk_goes_on_when_the_holder_dies_or_is_done(
    tmp_path: Path, end: signal.Signals | None
) -> None:
    entered = threading.Event()
    with child(_hold, tmp_path) as (process, connection):
        assert receive(connection) == "held"

        def wait() -> None:
            with DiskCache(tmp_path, 1 << 20).exclusive("ab"):
                entered.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(0.3)
        if end is None:
            connection.send("go on")
        else:
            os.kill(process.pid, end)
        waiting.join(60)
    assert entered.is_set()


def _hold(connection: Connection, folder: Path) -> None:
    with DiskCache(folder, 1 << 20).exclusive("ab"):
        connection.send("held")
        connection.recv()
    connection.recv()


@pytest.mark.fault
def test_a_holder_that_is_stopped_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_LOCK_SECONDS", 0.2)
    with child(_hold, tmp_path) as (process, connection):
        assert receive(connection) == "held"
        os.kill(process.pid, signal.SIGSTOP)
        with DiskCache(tmp_path, 1 << 20).exclusive("ab"):
            pass
        assert process.is_alive()


def test_a_child_forked_under_a_lock_does_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_LOCK_SECONDS", 0.0)
    context = multiprocessing.get_context("fork")
    done = context.Event()
    cache = DiskCache(tmp_path, 1 << 20)
    with cache.exclusive("ab"):
        (lock,) = (tmp_path / "locks").iterdir()
        child = context.Process(target=done.wait, args=(60,))
        child.start()
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        done.set()
        child.join(60)


def test_two_chunks_seldom_share_a_lock(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    for number in range(64):
        with cache.exclusive(f"{number:016x}"):
            pass
    assert len(list((tmp_path / "locks").iterdir())) >= 55


def test_the_same_chunk_put_by_many_at_once_is_whole(tmp_path: Path) -> None:
    barrier = forked.Barrier(3)
    context = [child(_put_at_once, tmp_path, barrier) for _ in range(3)]
    with context[0] as (_, a), context[1] as (_, b), context[2] as (_, c):
        assert [receive(connection) for connection in (a, b, c)] == [20, 20, 20]
    assert kept(tmp_path) == {f"{number}" for number in range(20)}
    assert used(tmp_path) == 20 * file_bytes(tmp_path)
    for number in range(20):
        assert_same(DiskCache(tmp_path, 1 << 20).get(f"{number}"), make_chunk(number))


def _put_at_once(connection: Connection, folder: Path, barrier: Any) -> None:
    cache, right = DiskCache(folder, 1 << 20), 0
    for number in range(20):
        barrier.wait(60)
        cache.put(f"{number}", make_chunk(number))
        found = cache.get(f"{number}")
        right += found is not None and np.array_equal(found.payload, make_chunk(number).payload)
    connection.send(right)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a real file system of 256 KiB."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "kdscale-test", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine does not let us mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_once_and_what_it_has_is_still_read(
    small_disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(small_disk / "cache", 1 << 30)
    chunks = {f"{number}": make_chunk(number, rows=60) for number in range(20)}
    for key, rows in chunks.items():
        cache.put(key, rows)
    there = kept(small_disk / "cache")
    assert 3 <= len(there) < 20
    for key in there:
        assert_same(cache.get(key), chunks[key])
    assert not list((small_disk / "cache/chunks").glob("*.tmp"))
    assert not cache.is_writing
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left on device" in caplog.text
    with cache.exclusive("no lock is needed now"):
        pass
    # There is room again, and after the pause it is used.
    (small_disk / "cache/chunks" / f"{min(there)}.blk").unlink()
    monkeypatch.setattr(cache, "_paused_until", time.monotonic())
    cache.put("again", chunks["7"])
    assert_same(cache.get("again"), chunks["7"])
    for key in chunks:
        cache.put(key, chunks[key])
    assert len(caplog.records) == 1


def test_a_file_that_may_not_grow_is_reported_once(tmp_path: Path) -> None:
    with child(_put_with_a_limit, tmp_path) as (_, connection):
        found, warnings, left = receive(connection)
    assert found == [True, False, False]
    assert len(warnings) == 1
    assert "File too large" in warnings[0]
    assert left == ["ab.blk"]


def _put_with_a_limit(connection: Connection, folder: Path) -> None:
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    disk.log.addHandler(handler)
    cache = DiskCache(folder, 1 << 20)
    cache.put("ab", make_chunk(0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    cache.put("cd", make_chunk(1))
    cache.put("ef", make_chunk(2))
    found = [cache.get(key) is not None for key in ("ab", "cd", "ef")]
    connection.send((found, warnings, os.listdir(folder / "chunks")))


def test_a_folder_that_cannot_be_made_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file/cache", 1 << 20)
    assert cache.get("ab") is None
    with cache.exclusive("ab"):
        cache.put("ab", make_chunk(0))
    cache.put("ab", make_chunk(0))
    assert cache.get("ab") is None
    assert len(caplog.records) == 1
    assert "Not a directory" in caplog.text
