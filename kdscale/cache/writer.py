"""Commit of captured units: any number of attempts at a unit, exactly one that counts.

The objects go first, under names that follow from their content; then one conditional put of
`commits/<unit>.json` decides. A writer killed anywhere leaves objects that nothing names, or a
committed unit, never half of one.
"""

import json
import time
import uuid

import numpy as np

from kdscale.cache.container import RowStats, encode_index, encode_unit, object_digest
from kdscale.cache.identity import Identity
from kdscale.cache.records import (
    Commit,
    commit_key,
    index_key,
    object_key,
    read_record,
    record_bytes,
)
from kdscale.errors import KdscaleError
from kdscale.store import Store
from kdscale.types import Rows


class UnitWriter:
    """Writes units of one cache. Holds no state of a unit; picklable, safe in many threads."""

    def __init__(self, store: Store, identity: Identity, rows_per_block: int) -> None:
        self._store = store
        self._rows_per_block = rows_per_block
        self._metadata = {
            "kdscale.format": str(identity["format"]),
            "kdscale.codec": json.dumps(identity["codec"], sort_keys=True),
            "kdscale.identity": json.dumps(identity, sort_keys=True),
        }

    def commit(self, unit: int, rows: Rows, payload: np.ndarray, stats: RowStats) -> bool:
        """Store a captured unit; False when another attempt at it was first.

        rows: the unit's R rows in the plan's order; payload: [R, T, bytes a position] uint8; stats
        of the same rows. KdscaleError when the store cut an object short.
        """
        started = time.monotonic()
        encoded = encode_unit(rows, payload, stats, self._metadata, self._rows_per_block)
        index = encode_index(stats)
        index_digest = object_digest(index)
        key, its_index = object_key(unit, encoded.digest), index_key(unit, index_digest)
        self._put(unit, key, encoded.data)
        self._put(unit, its_index, index)
        commit = Commit(
            unit=unit,
            object=key,
            digest=encoded.digest,
            length=len(encoded.data),
            index=its_index,
            index_digest=index_digest,
            index_length=len(index),
            rows=len(rows),
            targets=int(stats.length.sum()),
            blocks=encoded.blocks,
            attempt=uuid.uuid4().hex,
            seconds=round(time.monotonic() - started, 3),
        )
        if self._store.put_if_absent(commit_key(unit), record_bytes(commit)):
            return True
        self._discard(commit)
        return False

    def _put(self, unit: int, key: str, data: bytes) -> None:
        """Put an object and look that all of it arrived: some stores lose the end of large ones."""
        self._store.put(key, data)
        try:
            size = self._store.size(key)
        except FileNotFoundError:
            size = 0
        # An attempt with the same content, hence the same key, takes the object away when it has
        # lost. Then this one has lost too, and finds that out at the commit.
        if size != len(data) and not self._store.exists(commit_key(unit)):
            raise KdscaleError(
                f"{self._store}/{key} holds {size} bytes after a write of {len(data)}.",
                "Check the store's limits on the size of an object; lower cache.rows_per_unit.",
            )

    def _discard(self, lost: Commit) -> None:
        """Delete what this attempt wrote, except what the winner names too."""
        winner = read_record(Commit, self._store, commit_key(lost.unit))
        for key in {lost.object, lost.index} - {winner.object, winner.index}:
            self._store.delete(key)


def committed_units(store: Store) -> set[int]:
    """Numbers of the units that need no capture any more."""
    names = (key.removeprefix("commits/").removesuffix(".json") for key in store.list("commits/"))
    return {int(name) for name in names if name.isdigit()}
