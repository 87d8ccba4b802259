"""Commits to a store whose conditional put does not work: all of them through one process.

With a single writer a look before the put is enough. That it is single is a lease in the store,
which the committer renews while it lives. A store without conditional put cannot make a lease
airtight: two committers that start within the same moment, or one that is paused between its look
at the lease and its put for longer than the lease, can both write. So the lease is looked at before
every commit, each commit is read back, and what a commit names is content-addressed: the one that
lost finds out, and nothing that is named is ever half there.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from kdscale.store.lease import HeldLease, LeaseConfig, PutIfAbsent
from kdscale.store.probe import conditional_put
from kdscale.store.store import Store

_KEY = "committer.json"


class SingleCommitter:
    """The one process that commits to `store`; a context manager, safe in many threads.

    owner and lease: see HeldLease and its Terms. KdscaleError where another committer is alive.
    """

    def __init__(
        self, store: Store, owner: str, lease: float = 60.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._lease = HeldLease(store, _KEY, owner, LeaseConfig(lease, "commit", clock))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store. KdscaleError when another committer has taken over or this one is closed."""
        with self._lock:
            self._lease.check()
            try:
                return self._store.get(key) == data
            except FileNotFoundError:
                self._store.put(key, data)
            return self._store.get(key) == data

    def renew(self) -> None:
        """Renew the lease. KdscaleError when another committer has taken over."""
        self._lease.renew()

    def close(self) -> None:
        """Commit nothing more, and let the next committer start at once."""
        with self._lock:
            self._lease.close()


@contextmanager
def single_commits(store: Store, owner: str) -> Iterator[PutIfAbsent]:
    """Yield the store's put-if-absent, or a replacement where it does not choose one writer."""
    if conditional_put(store):
        yield store.put_if_absent
    else:
        with SingleCommitter(store, owner) as committer:
            yield committer.put_if_absent
