"""Commits to a store whose conditional put does not work: all of them through one process.

With a single writer a look before the put is enough. That it is single is a lease in the store,
which the committer renews while it lives. A store without conditional put cannot make a lease
airtight: two committers that start within the same moment, or one that is paused between its look
at the lease and its put for longer than the lease, can both write. So the lease is looked at before
every commit, each commit is read back, and what a commit names is content-addressed: the one that
lost finds out, and nothing that is named is ever half there.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Self

from kdscale.errors import KdscaleError
from kdscale.store.store import Store

log = logging.getLogger(__name__)

# `Store.put_if_absent` of a store whose probe passes, else a call that ends in `SingleCommitter`.
PutIfAbsent = Callable[[str, bytes], bool]

_KEY = "committer.json"
_RENEWALS_A_LEASE = 4


@dataclass(frozen=True)
class Lease:
    """Who commits. `token` is the process's own; `renewed` is in seconds since the epoch."""

    owner: str
    epoch: int
    renewed: float
    token: str


class SingleCommitter:
    """The one process that commits to `store`; a context manager, safe in many threads.

    owner: a name for messages. A committer that starts again under the same name takes its lease
    over at once, so give each run its own. lease: seconds after which an unrenewed lease counts as
    dead; clocks of the hosts must agree within a small part of it. KdscaleError where another
    committer is alive.
    """

    def __init__(
        self, store: Store, owner: str, lease: float = 60.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._seconds = lease
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._lease = self._taken(owner)
        # Never in the way of an interpreter that wants to end: an unrenewed lease just expires.
        threading.Thread(target=self._keep_renewing, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See Store. KdscaleError when another committer has taken over or this one is closed."""
        with self._lock:
            self._check_held()
            try:
                return self._store.get(key) == data
            except FileNotFoundError:
                self._store.put(key, data)
            return self._store.get(key) == data

    def renew(self) -> None:
        """Make the lease young again. KdscaleError when another committer has taken over."""
        with self._lock:
            self._check_held()
            self._lease = replace(self._lease, renewed=self._clock())
            self._write(self._lease)

    def close(self) -> None:
        """Commit nothing more, and let the next committer start at once."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            found = self._read()
            if found is not None and found.token == self._lease.token:
                self._write(replace(self._lease, renewed=0.0))

    def _taken(self, owner: str) -> Lease:
        """A lease of the next epoch, written and read back."""
        found = self._read()
        now = self._clock()
        if found is not None and found.owner != owner and now - found.renewed < self._seconds:
            raise self._alive(found)
        epoch = 1 if found is None else found.epoch + 1
        mine = Lease(owner, epoch, now, uuid.uuid4().hex)
        self._write(mine)
        winner = self._read()
        if winner != mine:
            raise self._alive(winner or mine)
        return mine

    def _alive(self, found: Lease) -> KdscaleError:
        age = max(self._clock() - found.renewed, 0.0)
        return KdscaleError(
            f"{found.owner} commits to {self._store} already: it was last seen {age:.0f} s ago.",
            "Let that run finish, or stop it and start again: after a crash its lease ends by "
            f"itself, {self._seconds:.0f} s after the last renewal.",
        )

    def _check_held(self) -> None:
        """KdscaleError unless this is the committer. Of two leases the higher epoch counts: where a
        stalled predecessor has written over this one, it is written again."""
        mine = self._lease
        if self._closed.is_set():
            raise KdscaleError(
                f"The committer {mine.owner} of {self._store} is closed.",
                "Start the run again: it continues where this one stopped.",
            )
        found = self._read()
        if found is None or found.epoch < mine.epoch:
            self._write(mine)
        elif found.token != mine.token:
            raise KdscaleError(
                f"{mine.owner} (epoch {mine.epoch}) may not commit to {self._store} any more: "
                f"{found.owner} (epoch {found.epoch}) has taken over.",
                "Let only one run at a time write to this place.",
            )

    def _keep_renewing(self) -> None:
        while not self._closed.wait(self._seconds / _RENEWALS_A_LEASE):
            try:
                self.renew()
            except KdscaleError as error:
                log.warning("%s", error)
                return
            except OSError as error:
                log.warning("the lease of the committer is not renewed: %s", error)

    def _read(self) -> Lease | None:
        """None where there is none, or something that is no lease."""
        try:
            return Lease(**json.loads(self._store.get(_KEY)))
        except (FileNotFoundError, TypeError, ValueError):
            return None

    def _write(self, lease: Lease) -> None:
        self._store.put(_KEY, json.dumps(asdict(lease)).encode())
