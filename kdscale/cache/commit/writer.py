"""Commit of captured shards: any number of attempts at a shard, exactly one that counts.

The objects go first, under names that follow from their content; then one conditional put of
`commits/<shard>.json` decides. A writer killed anywhere leaves objects that nothing names, or a
committed shard, never half of one.
"""

import json
import time
import uuid

import numpy as np

from kdscale.cache.commit.plan import open_layout
from kdscale.cache.format.records import Commit, Generation, commit_key, read_record, record_bytes
from kdscale.cache.format.shard_file import encode_index, encode_shard, object_digest
from kdscale.cache.rows import RowStats
from kdscale.cache.spec import Identity
from kdscale.errors import KdscaleError
from kdscale.store import PutIfAbsent, Store
from kdscale.types import Rows


class ShardWriter:
    """Writes shards of one generation. Holds no state of a shard; safe in many threads."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        generation: Generation,
        put_if_absent: PutIfAbsent | None = None,
    ) -> None:
        """`put_if_absent` replaces the store's own, where that cannot be relied on."""
        self._store = store
        self._generation = generation
        self._layout = open_layout(store, identity, generation)
        self._put_if_absent = put_if_absent or store.put_if_absent
        self._metadata = {
            "kdscale.format": str(identity["format"]),
            "kdscale.codec": json.dumps(identity["codec"], sort_keys=True),
            "kdscale.identity": json.dumps(identity, sort_keys=True),
            "kdscale.prior": generation.prior_key or "",
        }

    def commit(self, shard: int, rows: Rows, payload: np.ndarray, stats: RowStats) -> Commit | None:
        """Store a captured shard; None when another attempt at it was first.

        shard: its number in the generation. rows: the shard's R rows in the plan's order; payload:
        [R, T, bytes a position] uint8; stats of the same rows. KdscaleError when the store cut an
        object short.
        """
        started = time.monotonic()
        encoded = encode_shard(
            rows,
            payload,
            stats,
            self._metadata,
            self._generation.sequences_per_chunk,
            self._layout.packing,
        )
        index = encode_index(stats, encoded.chunks)
        commit = Commit(
            shard=self._generation.first_shard + shard,
            digest=encoded.digest,
            length=len(encoded.data),
            index_digest=object_digest(index),
            index_length=len(index),
            rows=len(rows),
            targets=int(stats.length.sum()),
            attempt=uuid.uuid4().hex,
            seconds=0,
        )
        self._put(commit, commit.object, encoded.data)
        self._put(commit, commit.index, index)
        commit = commit.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
        if not self._put_if_absent(commit_key(commit.shard), record_bytes(commit)):
            self._discard(commit)
            return None
        # Before the commit nothing named these objects, and a `gc` that found them left over from a
        # killed attempt with the same bytes may have taken them away in between.
        for key, data in ((commit.object, encoded.data), (commit.index, index)):
            if self._size(key) != len(data):
                self._store.put(key, data)
        return commit

    def _put(self, commit: Commit, key: str, data: bytes) -> None:
        """Put an object and look that all of it arrived: some stores lose the end of large ones."""
        self._store.put(key, data)
        size = self._size(key)
        # An attempt with the same content, hence the same key, takes the object away when it has
        # lost. Then this one has lost too, and finds that out at the commit.
        if size != len(data) and not self._store.exists(commit_key(commit.shard)):
            raise KdscaleError(
                f"{self._store}/{key} holds {size} bytes after a write of {len(data)}.",
                "Check the store's limits on object size; lower cache.sequences_per_shard.",
            )

    def _size(self, key: str) -> int:
        """Bytes of an object, 0 where there is none."""
        try:
            return self._store.size(key)
        except FileNotFoundError:
            return 0

    def _discard(self, lost: Commit) -> None:
        """Delete what this attempt wrote, except what the winner names too."""
        winner = read_record(Commit, self._store, commit_key(lost.shard))
        for key in {lost.object, lost.index} - {winner.object, winner.index}:
            self._store.delete(key)


def committed_shards(store: Store, generation: Generation) -> set[int]:
    """Numbers, in the generation, of the shards that need no capture any more."""
    first, count = generation.first_shard, len(generation.shards)
    names = (key.removeprefix("commits/").removesuffix(".json") for key in store.list("commits/"))
    numbers = {int(name) - first for name in names if name.isdigit()}
    return {number for number in numbers if 0 <= number < count}
