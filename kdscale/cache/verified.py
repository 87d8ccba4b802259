"""Reads that are checked against the manifest before anything decodes them.

A wrong digest may come from the way rather than from the store, so a read is tried twice. Then the
error names the object, because the data cannot be mended here: the unit must be captured again.
"""

from collections.abc import Callable

from kdscale.cache.container import block_digest, object_digest
from kdscale.cache.records import Block, Commit
from kdscale.errors import KdscaleError
from kdscale.store import Store

_ATTEMPTS = 2


def read_block(store: Store, unit: Commit, block: Block) -> bytes:
    """A block's bytes; KdscaleError naming object, offset and digests where they are not intact."""

    def read() -> bytes:
        try:
            return store.get_range(unit.object, block.offset, block.length)
        except FileNotFoundError:
            raise
        except OSError:
            # A short object and an unreachable store look alike until the size is known.
            if (size := store.size(unit.object)) == unit.length:
                raise
            raise _damaged(
                store, unit.object, f"has {size} bytes, the manifest says {unit.length}"
            ) from None

    where = f"its block at byte {block.offset} ({block.length} bytes)"
    return _verified(read, block_digest, block.digest, store, unit.object, where)


def read_index(store: Store, unit: Commit) -> bytes:
    """The bytes of a unit's index object; KdscaleError where they are not intact."""

    def read() -> bytes:
        return store.get(unit.index)

    return _verified(read, object_digest, unit.index_digest, store, unit.index, "the whole object")


def _verified(
    read: Callable[[], bytes],
    digest: Callable[[bytes], str],
    expected: str,
    store: Store,
    key: str,
    where: str,
) -> bytes:
    """What `read` gives, once its digest is the expected one."""
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
        "the damaged units, and the cache stage captures them again.",
    )
