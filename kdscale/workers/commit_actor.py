"""Commits of a run's workers: each by itself, or all through one Ray actor.

The store's conditional put decides between commits. Where a probe finds that it does not (servers
that ignore or race it, protocols without one), one actor commits for all workers, under a lease
that keeps a second run out.
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
def open_committer(store: Store, probed: Store | None = None) -> Iterator[PutIfAbsent]:
    """Give the block a `put_if_absent` for `store` that can be sent to workers.

    `probed` is the part of the store that keeps the probe's result, `store` by default. Ray is
    needed if the conditional put does not work.

    Raises:
        KdscaleError: The conditional put does not work, and another run commits to `store`.
    """
    if conditional_put(probed or store):
        yield store.put_if_absent
        return
    print(f"{store} has no working conditional put: one process commits for all", flush=True)
    actor = _start(store)
    try:
        yield _ActorPut(actor)
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
    """The process that commits. It takes its lease in `ready`, whose errors reach the caller."""

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


class _ActorPut:
    """The actor's `put_if_absent` as a picklable function."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, key: str, data: bytes) -> bool:
        return bool(ray.get(self._actor.put_if_absent.remote(key, data)))
