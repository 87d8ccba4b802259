"""One reader of one cache, or of several as one, with memory and disk for decoded chunks."""

from collections.abc import Sequence
from pathlib import Path

from kdscale.cache.read.concat import ConcatReader
from kdscale.cache.read.disk_cache import DiskCache
from kdscale.cache.read.reader import CacheReader, CacheSource
from kdscale.cache.spec import Identity
from kdscale.utils.local_cache_dir import local_cache_dir


def open_reader(
    sources: Sequence[CacheSource],
    *,
    expected: Identity | None = None,
    memory_mib: int,
    disk_gib: float,
    folder: str | None = None,
) -> CacheReader | ConcatReader:
    """Return a reader of the caches, several of them as one.

    `memory_mib` is for decoded chunks, shared out by the caches' weights; `disk_gib`, on the
    machine's disk, in `folder` or that of temporary files, is for more of them. Raises KdscaleError
    where a cache differs from `expected`, or from the others.
    """
    place = Path(folder) if folder else local_cache_dir("chunks")
    disk = DiskCache(place, int(disk_gib * 2**30)) if disk_gib else None
    weights = [source.weight for source in sources]
    readers = [
        CacheReader(
            source.store,
            expected=expected,
            generations=source.generations,
            memory_bytes=int((memory_mib << 20) * source.weight / sum(weights)),
            disk=disk,
        )
        for source in sources
    ]
    return readers[0] if len(readers) == 1 else ConcatReader(readers, weights)
