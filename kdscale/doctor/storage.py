"""Checks of a run's output: writes, reads, conditional puts, speed, clock."""

import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

from kdscale.doctor.machine import Check
from kdscale.errors import KdscaleError, StoreError
from kdscale.store import Store, open_store, probe

_SMALL = 1024
_LARGE = 8 * 2**20
_REPEATS = 5
# Ages decide whether a driver is alive, who holds a lease and what is garbage.
_SKEW_SECONDS = 5.0
_SLOW_SECONDS = 1.0


def checks(url: str) -> Iterator[Check]:
    """Yield all findings on the store; only the first if it cannot be used. Cleans up."""
    try:
        store = open_store(url)
        store.check()
    except KdscaleError as error:
        yield Check("failed", "store", error.problem, error.fix)
        return
    yield Check("ok", "store", f"{store}: write, read and delete")
    scratch = store.child(f"kdscale-doctor-{uuid.uuid4().hex}")
    try:
        yield conditional_put(store)
        yield speed(scratch)
        yield clock(scratch)
    except StoreError as error:
        yield Check("failed", "store", error.problem, error.fix)
    finally:
        with suppress(StoreError):
            for key in scratch.list():
                scratch.delete(key)


def conditional_put(store: Store) -> Check:
    """Check that simultaneous writers of one key get exactly one winner."""
    verdict = probe(store)
    if verdict.conditional_put:
        return Check("ok", "conditional put", verdict.detail)
    return Check(
        "warning",
        "conditional put",
        verdict.detail,
        "Runs work and commit through one process; two drivers of one run cannot be told apart. "
        "Use a store with a working conditional put (S3, GCS, Azure).",
    )


def speed(store: Store) -> Check:
    """Measure the time of a small object each way, and the rate of a large one."""
    small, large = bytes(_SMALL), uuid.uuid4().bytes * (_LARGE // 16)
    put = statistics.median(_seconds(lambda: store.put("small", small)) for _ in range(_REPEATS))
    get = statistics.median(_seconds(lambda: store.get("small")) for _ in range(_REPEATS))
    out = _LARGE / _seconds(lambda: store.put("large", large)) / 1e6
    back = _LARGE / _seconds(lambda: store.get("large")) / 1e6
    value = f"put {put * 1e3:.1f} ms, get {get * 1e3:.1f} ms; {out:.0f} MB/s out, {back:.0f} in"
    if max(put, get) < _SLOW_SECONDS:
        return Check("ok", "store speed", value)
    fix = "Use a bucket in the region of the cluster, or look at the network between them."
    return Check("warning", "store speed", value, fix)


def clock(store: Store) -> Check:
    """Compare this machine's clock with the store's, which may show whole seconds."""
    before = time.time()
    store.put("clock", b"")
    after = time.time()
    (entry,) = store.entries("clock")
    skew = max(before - 1 - entry.modified, entry.modified - after - 1, 0.0)
    if skew < _SKEW_SECONDS:
        return Check("ok", "store clock", f"within {_SKEW_SECONDS:g} s of this machine's")
    ahead = "ahead of" if entry.modified > after else "behind"
    value = f"{skew:.0f} s {ahead} this machine's"
    return Check("warning", "store clock", value, "Set the clock by NTP (chrony), on all nodes.")


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
