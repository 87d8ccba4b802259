"""Reads that are checked against the manifest before anything decodes them.

A wrong digest may come from the way rather than from the store, so a read is tried twice. Then the
error names the object, because the data cannot be repaired here: the shard must be captured again.
"""

from collections.abc import Callable

from kdscale.cache.format.records import Chunk, Shard
from kdscale.cache.format.shard_file import ShardIndex, chunk_digest, decode_index, object_digest
from kdscale.errors import KdscaleError
from kdscale.store import Store

_ATTEMPTS = 2


def read_chunk(store: Store, shard: Shard, chunk: Chunk) -> bytes:
    """Return a chunk's bytes; KdscaleError naming object, offset and digests where not intact."""

    def read() -> bytes:
        try:
            return store.get_range(shard.object, chunk.offset, chunk.length)
        except FileNotFoundError:
            raise
        except OSError:
            # A short object and an unreachable store look alike until the size is known.
            if (size := store.size(shard.object)) == shard.length:
                raise
            raise _damaged(
                store, shard.object, f"has {size} bytes, the manifest says {shard.length}"
            ) from None

    where = f"its chunk at byte {chunk.offset} ({chunk.length} bytes)"
    return _verified(read, chunk_digest, chunk.digest, store, shard.object, where)


def read_index(store: Store, shard: Shard) -> ShardIndex:
    """Return a shard's index; KdscaleError where its object is not intact."""
    return decode_index(read_object(store, shard.index, shard.index_digest))


def read_object(store: Store, key: str, digest: str) -> bytes:
    """Return a whole object; KdscaleError where it is missing or its xxh3_128 is not `digest`."""

    def read() -> bytes:
        return store.get(key)

    return _verified(read, object_digest, digest, store, key, "the whole object")


def _verified(
    read: Callable[[], bytes],
    digest: Callable[[bytes], str],
    expected: str,
    store: Store,
    key: str,
    where: str,
) -> bytes:
    """Return what `read` gives, once its digest is the expected one."""
    found = ""
    for _ in range(_ATTEMPTS):
        try:
            data = read()
        except FileNotFoundError:
            raise _damaged(store, key, "is missing") from None
        if (found := digest(data)) == expected:
            return data
    raise _damaged(store, key, f"is corrupt: {where} has digest {found}, not {expected}")


def _damaged(store: Store, key: str, problem: str) -> KdscaleError:
    return KdscaleError(
        f"{store}/{key} {problem}.",
        f"`kdscale cache verify {store}` lists all damage; `kdscale cache repair {store}` drops "
        "the damaged shards, and the cache stage captures them again.",
    )
