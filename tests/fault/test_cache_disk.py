"""The local disk under a reader is full or damaged: it reads on, and what it reads is right."""

import ctypes
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdscale.cache.read.disk_cache import DiskCache
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows
from kdscale.store import Store
from tests.fault.captures import capture
from tests.fault.conftest import Start
from tests.fault.outcome import ROWS, assert_same, planted_in, rows_of
from tests.fault.processes import Pipe

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

CHUNKS = 5
ENOUGH = 1 << 20
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000


@pytest.fixture
def cache(local: Store, start: Start) -> Store:
    """Return a published cache."""
    start(capture, planted_in(local)).result()
    return local


def read_shuffled(cache: Store, folder: Path, expected: CachedRows) -> dict[str, float]:
    """Two epochs in another order, compared row by row; the reader's metrics."""
    # Memory for nothing: the second epoch comes from the disk, or from the store again.
    reader = CacheReader(cache, disk=DiskCache(folder, ENOUGH), memory_bytes=1)
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(ROWS)
        assert_same(reader.read(order), rows_of(expected, order))
    return reader.metrics


def flip(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path, _: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path, _: Path) -> None:
    os.truncate(path, 0)


def take_another(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [flip, truncate, empty, take_another])
def test_damaged_chunks_on_the_disk_are_fetched_again(
    cache: Store, tmp_path: Path, undisturbed: CachedRows, damage: Callable[[Path, Path], None]
) -> None:
    folder = tmp_path / "disk"
    assert read_shuffled(cache, folder, undisturbed)["chunks_fetched"] == CHUNKS
    first, *rest = sorted((folder / "chunks").iterdir())
    assert len(rest) == CHUNKS - 1
    for path in rest:
        damage(path, first)
    assert read_shuffled(cache, folder, undisturbed)["chunks_fetched"] == CHUNKS - 1
    assert read_shuffled(cache, folder, undisturbed)["chunks_fetched"] == 0


def mount_tiny_disk(folder: Path, options: str) -> str:
    """Mount a file system of this process alone; return why there is none, or ""."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        return f"no namespace: {os.strerror(ctypes.get_errno())}"
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    folder.mkdir()
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, options.encode()):
        return f"no tmpfs: {os.strerror(ctypes.get_errno())}"
    return ""


def read_on_tiny_disk(
    _: Pipe, cache: Store, folder: Path, options: str, expected: CachedRows
) -> tuple[str, dict[str, float]]:
    """Return the reason why this machine cannot do it, or the reader's metrics."""
    if reason := mount_tiny_disk(folder, options):
        return reason, {}
    return "", read_shuffled(cache, folder, expected)


@pytest.mark.parametrize("options", ["size=16k", "nr_inodes=6", "nr_inodes=1"])
def test_a_full_disk_is_read_past(
    cache: Store, tmp_path: Path, start: Start, undisturbed: CachedRows, options: str
) -> None:
    worker = start(read_on_tiny_disk, cache, tmp_path / "disk", options, undisturbed)
    reason, metrics = worker.result()
    if reason:
        pytest.skip(f"this machine mounts nothing for its users: {reason}")
    # Some chunks found room and some had to be fetched for each epoch.
    assert CHUNKS < metrics["chunks_fetched"] <= 2 * CHUNKS


def read_with_short_files(
    _: Pipe, cache: Store, folder: Path, expected: CachedRows
) -> dict[str, float]:
    """Where no file may grow to a chunk's size, as a quota would have it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    return read_shuffled(cache, folder, expected)


def test_files_that_may_not_grow_are_read_past(
    cache: Store, tmp_path: Path, start: Start, undisturbed: CachedRows
) -> None:
    worker = start(read_with_short_files, cache, tmp_path / "disk", undisturbed)
    assert worker.result()["chunks_fetched"] == 2 * CHUNKS
    assert list((tmp_path / "disk" / "chunks").iterdir()) == []
