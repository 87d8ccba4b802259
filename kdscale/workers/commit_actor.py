"""How the workers of a run commit: each by itself, or all through one Ray actor.

Commits are decided by the store's conditional put. Where a probe finds that it does not decide
(servers that ignore or race it, protocols without one), an actor of the run is the only one that
commits, under a lease that keeps a second run out.
"""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from kdscale.errors import KdscaleError
from kdscale.store import PutIfAbsent, SingleCommitter, Store, conditional_put
from kdscale.workers.ray_session import beside_driver

# A run that died keeps its lease for a minute: waiting it out beats an error about a dead run.
_PATIENCE_SECONDS = 75
_PAUSE_SECONDS = 5


@contextmanager
def committing(store: Store, probed: Store | None = None) -> Iterator[PutIfAbsent]:
    """What stands for `store.put_if_absent` while the block lasts, in this process and, pickled, in
    every worker. `probed` is the part of the store that keeps the verdict, `store` by default.
    Needs Ray where the verdict is bad. KdscaleError where another run commits to `store` then."""
    if conditional_put(probed or store):
        yield store.put_if_absent
        return
    print(f"{store} has no working conditional put: one process commits for all", flush=True)
    actor = _start(store)
    try:
        yield _ThroughActor(actor)
    finally:
        ray.get(actor.close.remote())
        ray.kill(actor)


def _start(store: Store) -> Any:
    owner = f"process {os.getpid()} on {platform.node()}"
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        actor = beside_driver(_Committer).remote(store, owner)
        try:
            ray.get(actor.ready.remote())
            return actor
        except ray.exceptions.RayActorError as error:
            cause = error.__cause__ or error
            raise KdscaleError(
                f"No committer for {store} could be started: {cause}", "Look at Ray's logs."
            ) from error
        except KdscaleError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


class _Committer:
    """The process that commits. Its lease is taken in `ready`, whose errors reach the caller."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store = store
        self._owner = owner
        self._committer: SingleCommitter | None = None

    def ready(self) -> None:
        self._committer = SingleCommitter(self._store, self._owner)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        assert self._committer is not None
        return self._committer.put_if_absent(key, data)

    def close(self) -> None:
        if self._committer is not None:
            self._committer.close()


class _ThroughActor:
    """A picklable call of the actor's `put_if_absent`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, key: str, data: bytes) -> bool:
        return bool(ray.get(self._actor.put_if_absent.remote(key, data)))
