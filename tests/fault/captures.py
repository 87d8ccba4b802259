"""Captures of the fault tests, each in a process."""

import itertools
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from typing import Any, Literal, cast

import numpy as np

from kdscale.cache.commit.manifest import publish
from kdscale.cache.commit.writer import ShardWriter, committed_shards
from kdscale.cache.read.loader import read_batches
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows
from kdscale.store import PutIfAbsent, Store
from tests.fault.outcome import assert_same, decoded, rows_of
from tests.fault.processes import Pipe, kill_me
from tests.unit.cache.planted import Planted

Moment = Literal["before", "after"]
"""Moment of a store call: before it is made, or after it and before its answer is used."""

MOMENTS: tuple[Moment, ...] = ("before", "after")


@dataclass(frozen=True)
class Call:
    """A call of a store."""

    number: int
    name: str
    key: str

    def __str__(self) -> str:
        return f"call {self.number}, {self.name} {self.key}"

    @property
    def writes(self) -> bool:
        """Return whether it changes the store."""
        return self.name in ("put", "put_if_absent", "delete")


class WatchedStore:
    """A store that shows each of its calls to `watch`, at both moments."""

    def __init__(self, store: Store, watch: Callable[[Call, Moment], None]) -> None:
        self._store = store
        self._watch = watch
        self._numbers = itertools.count()

    def __str__(self) -> str:
        return str(self._store)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*arguments: Any) -> Any:
            this = Call(next(self._numbers), name, str(next(iter(arguments), "")))
            self._watch(this, "before")
            result = method(*arguments)
            self._watch(this, "after")
            return result

        return call if callable(method) else method


def watched(planted: Planted, watch: Callable[[Call, Moment], None]) -> Planted:
    """Return the same content behind a watched store."""
    return replace(planted, store=cast(Store, WatchedStore(planted.store, watch)))


def capture(_: Pipe | None, planted: Planted, put_if_absent: PutIfAbsent | None = None) -> int:
    """Capture from the plan to the manifest; return how many shards were committed.

    It resumes where an earlier capture ended.
    """
    generation = planted.agree(put_if_absent=put_if_absent)
    vars(planted)["generation"] = generation  # It need not agree a second time.
    writer = ShardWriter(planted.store, planted.identity, generation, put_if_absent)
    missing = set(range(len(generation.shards))) - committed_shards(planted.store, generation)
    commits = [writer.commit(*planted.shard(shard)) for shard in sorted(missing)]
    publish(planted.store, generation, put_if_absent)
    return sum(commit is not None for commit in commits)


def capture_recorded(pipe: Pipe, planted: Planted) -> list[Call]:
    """Return the store calls of an undisturbed capture."""
    calls: list[Call] = []

    def watch(call: Call, moment: Moment) -> None:
        if moment == "before":
            calls.append(call)

    capture(pipe, watched(planted, watch))
    return sorted(calls, key=lambda call: call.number)


def capture_killed(pipe: Pipe, planted: Planted, number: int, moment: Moment) -> None:
    """Capture, and be killed at a call."""

    def watch(call: Call, now: Moment) -> None:
        if (call.number, now) == (number, moment):
            kill_me()

    capture(pipe, watched(planted, watch))


def capture_held(pipe: Pipe, planted: Planted, number: int, moment: Moment) -> int:
    """Capture, say so at a call, and wait there for a message."""

    def watch(call: Call, now: Moment) -> None:
        if (call.number, now) == (number, moment):
            pipe.ask("held")

    return capture(pipe, watched(planted, watch))


def capture_together(pipe: Pipe, planted: Planted, meeting: Barrier) -> int:
    """Capture, starting and committing at the same moment as the others."""
    planted.store.exists("connected")

    def commit(key: str, data: bytes) -> bool:
        if key.startswith("commits/") and planted.store.local_path() is None:
            meeting.wait()
        return planted.store.put_if_absent(key, data)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        # In a folder all is decided when the written file gets its name.
        if event in ("os.link", "os.rename") and "/commits/" in str(arguments[1]):
            meeting.wait()

    sys.addaudithook(hook)
    meeting.wait()
    return capture(pipe, planted, commit)


def capture_and_read(pipe: Pipe, planted: Planted) -> CachedRows:
    """Capture, and return the cache as a reader in this process decodes it."""
    capture(pipe, planted)
    return decoded(planted.store)


def capture_cut_off(pipe: Pipe, planted: Planted, number: int) -> int:
    """`capture_held` before a call, which says when it first has to try a call again."""
    _say_cut_off(pipe)
    return capture_held(pipe, planted, number, "before")


def read_cut_off(pipe: Pipe, store: Store, expected: CachedRows) -> int:
    """Read batches, fetched ahead, until a message, and an epoch more; return the epochs.

    Says when it has read one epoch, and when a fetch has to be tried again.
    """
    _say_cut_off(pipe)
    # Most of what is read is fetched again.
    reader = CacheReader(store, memory_bytes=expected.nbytes // 2)
    generator = np.random.default_rng(0)
    for epoch in itertools.count():
        order = generator.permutation(len(reader))
        orders = np.array_split(order, 4)
        for batch, rows in zip(read_batches(reader, orders, prefetch=3), orders, strict=True):
            assert_same(batch, rows_of(expected, rows))
        if epoch == 0:
            pipe.say("reading")
        elif pipe.is_told():
            return epoch
    raise AssertionError


def _say_cut_off(pipe: Pipe) -> None:
    """Say "cut off" at the first retry of this process."""

    class Handler(logging.Handler):
        said = False

        def emit(self, _: logging.LogRecord) -> None:
            if not self.said:
                self.said = True
                pipe.say("cut off")

    logger = logging.getLogger("kdscale.store.retry")
    logger.setLevel(logging.INFO)
    logger.addHandler(Handler())
