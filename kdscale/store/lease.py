"""A lease on a place in a store: the one process that may write there, for as long as it renews.

Where the store's conditional put works, each epoch is claimed by one, so that of processes that
start together exactly one has the lease. Without it two can both believe so for a moment, until
they look again. A process that is paused between its look and its write for longer than the lease
can write once more in either case: what it writes must bear that.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from kdscale.errors import KdscaleError
from kdscale.store.store import Store

log = logging.getLogger(__name__)

PutIfAbsent = Callable[[str, bytes], bool]
"""`Store.put_if_absent` of a store whose probe passes, or its replacement."""

_RENEWALS_A_LEASE = 4
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Lease:
    """The right of one process to write.

    `token` is the process's own; `renewed` and `since` are seconds since the epoch; `process`
    names the process and its machine, "" where that is not known.
    """

    owner: str
    epoch: int
    renewed: float
    token: str
    since: float = 0.0
    process: str = ""


@dataclass(frozen=True)
class LeaseConfig:
    """Settings of a lease.

    seconds: after which an unrenewed one counts as dead; clocks of the hosts must agree within
    a small part of it. verb: what its owner does, for messages. claim: decides between
    processes that start together. is_dead: whether a holder is known to be gone.
    """

    seconds: float = 60.0
    verb: str = "write"
    clock: Callable[[], float] = time.time
    claim: PutIfAbsent | None = None
    is_dead: Callable[[Lease], bool] = lambda lease: False


class HeldLease:
    """A lease that this process holds and keeps renewing; safe in many threads.

    `Lease.owner` is a name for messages. A process that starts again under the same name takes its
    lease over at once, so give each run its own; so does one that knows the owner to be dead.
    """

    def __init__(
        self, store: Store, key: str, owner: str, terms: LeaseConfig, process: str = ""
    ) -> None:
        """KdscaleError where another one holds it."""
        self._store = store
        self._key = key
        self._terms = terms
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._lost: KdscaleError | None = None
        self._lease = self._taken(owner, process)
        # Never in the way of an interpreter that wants to end: an unrenewed lease just expires.
        threading.Thread(target=self._keep_renewing, name="lease", daemon=True).start()

    def check(self) -> None:
        """KdscaleError unless this process still holds the lease, as the store says."""
        with self._lock:
            self._check()

    def check_known(self) -> None:
        """Like `check`, as the last renewal found: costs nothing."""
        if self._lost is not None:
            raise self._lost

    def fence(self) -> "Fence":
        """Return a fence for the processes that write on this one's behalf."""
        return Fence(self._store, self._key, self._lease, self._terms.verb)

    def renew(self) -> None:
        """Renew the lease. Raises KdscaleError where another owner has taken it over."""
        with self._lock:
            self._check()
            self._lease = replace(self._lease, renewed=self._terms.clock())
            self._write(self._lease)

    def close(self) -> None:
        """Give the lease back: the next one may start at once."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            found = self._read()
            if found is not None and found.token == self._lease.token:
                self._write(replace(self._lease, renewed=0.0))

    def _taken(self, owner: str, process: str) -> Lease:
        """Take a lease of the next epoch: claim it, write it and read it back."""
        found = self._read()
        now = self._terms.clock()
        if found is not None and found.owner != owner and self._lives(found, now):
            raise self._alive(found)
        token = uuid.uuid4().hex
        epoch = self._claimed(1 if found is None else found.epoch + 1, token)
        if self._read() != found:
            raise self._alive(self._read())
        mine = Lease(owner, epoch, now, token, now, process)
        self._write(mine)
        # One that claimed the next epoch meanwhile, taking this process for dead, has the lease.
        overtaken = self._terms.claim is not None and self._store.exists(self._claim_key(epoch + 1))
        winner = self._read()
        if winner != mine or overtaken:
            raise self._alive(winner or mine)
        return mine

    def _claimed(self, epoch: int, token: str) -> int:
        """Claim `epoch` or the first after it that is free, and return it.

        KdscaleError where another process claimed it and holds the lease; a process that
        died before it wrote the lease is passed by.
        """
        claim = self._terms.claim
        while claim is not None and not claim(self._claim_key(epoch), token.encode()):
            time.sleep(_PAUSE_SECONDS)
            found = self._read()
            if found is not None and found.epoch >= epoch:
                raise self._alive(found)
            epoch += 1
        return epoch

    def _claim_key(self, epoch: int) -> str:
        return f"{self._key}.epochs/{epoch:06d}"

    def _lives(self, lease: Lease, now: float) -> bool:
        return now - lease.renewed < self._terms.seconds and not self._terms.is_dead(lease)

    def _alive(self, found: Lease | None) -> KdscaleError:
        assert found is not None  # nothing deletes it
        age = max(self._terms.clock() - found.renewed, 0.0)
        return KdscaleError(
            f"{found.owner} {self._terms.verb}s to {self._store} already: it was last seen "
            f"{age:.0f} s ago.",
            "Let that run finish, or stop it and start again: after a crash its lease ends by "
            f"itself, {self._terms.seconds:.0f} s after the last renewal.",
        )

    def _check(self) -> None:
        """Raise KdscaleError unless this process holds the lease.

        Of two leases the higher epoch counts: where a stalled predecessor has overwritten
        this one, it is written again.
        """
        mine = self._lease
        if self._closed.is_set():
            raise KdscaleError(
                f"The lease of {mine.owner} of {self._store} is closed.",
                "Start the run again: it continues where this one stopped.",
            )
        found = self._read()
        if found is None or found.epoch < mine.epoch:
            self._write(mine)
        elif found.token != mine.token:
            self._lost = _overtaken(mine, found, self._terms.verb, self._store)
            raise self._lost

    def _keep_renewing(self) -> None:
        while not self._closed.wait(self._terms.seconds / _RENEWALS_A_LEASE):
            try:
                self.renew()
            except KdscaleError as error:
                if not self._closed.is_set():
                    log.warning("%s", error)
                return
            except OSError as error:
                log.warning("the lease of %s is not renewed: %s", self._store, error)

    def _read(self) -> Lease | None:
        return read_lease(self._store, self._key)

    def _write(self, lease: Lease) -> None:
        self._store.put(self._key, json.dumps(asdict(lease)).encode())


@dataclass(frozen=True)
class Fence:
    """Check that a process asks before it writes on behalf of the holder of `lease`."""

    store: Store
    key: str
    lease: Lease
    verb: str

    def check(self) -> None:
        """KdscaleError where another one has taken the lease over."""
        found = read_lease(self.store, self.key)
        if found is not None and found.epoch > self.lease.epoch:
            raise _overtaken(self.lease, found, self.verb, self.store)


def read_lease(store: Store, key: str) -> Lease | None:
    """None where there is none, or something that is no lease."""
    try:
        return Lease(**json.loads(store.get(key)))
    except (FileNotFoundError, TypeError, ValueError):
        return None


def _overtaken(mine: Lease, found: Lease, verb: str, store: Store) -> KdscaleError:
    return KdscaleError(
        f"{mine.owner} (epoch {mine.epoch}) may not {verb} to {store} any more: "
        f"{found.owner} (epoch {found.epoch}) has taken over.",
        "Let only one run at a time write to this place.",
    )
