"""Probe of a store's conditional put: whether it decides between writers.

Servers of S3's protocol have let several simultaneous creates of one key succeed (SeaweedFS before
4.17 let 3 of 3, see its issue 8800; versitygw up to 32 of 32), or ignored the header; so may a
network file system. So it is tried: writers wait for each other, then create the same key.
"""

import json
import pickle
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from threading import Barrier
from typing import Self

from kdscale.store.store import Store

_KEY = "store-probe.json"


@dataclass(frozen=True)
class Verdict:
    """`winners`: how many writers of each round got the answer that their bytes are stored."""

    conditional_put: bool
    writers: int
    rounds: int
    winners: tuple[int, ...]
    detail: str

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Parse what `bytes(verdict)` wrote; ValueError for anything else."""
        try:
            fields = json.loads(data)
            verdict = cls(**fields | {"winners": tuple(fields["winners"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a verdict: {data[:100]!r}") from error
        if not isinstance(verdict.conditional_put, bool):
            raise ValueError(f"not a verdict: {data[:100]!r}")
        return verdict

    def __bytes__(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def conditional_put(store: Store) -> bool:
    """Return whether the store's conditional put works.

    It is probed once; the verdict stays in the store. Ask from one process and hand the answer on:
    two that ask at the same time both probe.
    """
    try:
        return Verdict.read(store.get(_KEY)).conditional_put
    except (FileNotFoundError, ValueError):
        verdict = probe(store)
        store.put(_KEY, bytes(verdict))
        return verdict.conditional_put


def probe(store: Store, writers: int = 16, rounds: int = 4) -> Verdict:
    """Let `writers` create a fresh key at the same moment, in each of `rounds`; then one more.

    In every round exactly one must win and its bytes be stored; a later create must be refused.
    Each writer has its own connection. Nothing is left in the store.
    """
    if not store.claims_conditional_put:
        return Verdict(False, writers, 0, (), "the protocol has no conditional put")
    keys = [f"store-probe-{uuid.uuid4().hex}/{number}" for number in range(rounds)]
    # A pickle carries no connection, so each copy opens its own: before the rounds, not in them.
    copies = [pickle.loads(pickle.dumps(store)) for _ in range(writers)]
    for copy in copies:
        copy.exists(keys[0])
    with ThreadPoolExecutor(rounds) as pool:
        try:
            # Side by side, because some servers let a writer that meets another wait for seconds.
            results = list(pool.map(lambda key: _round(copies, key), keys))
        finally:
            for key in keys:
                store.delete(key)
    faults = [f"round {number}: {fault}" for number, (_, fault) in enumerate(results) if fault]
    detail = "; ".join(faults) or f"one winner of {writers} in each of {rounds} rounds"
    return Verdict(not faults, writers, rounds, tuple(count for count, _ in results), detail)


def _round(stores: list[Store], key: str) -> tuple[int, str]:
    """Return how many writers won, and what is wrong with that, "" for nothing."""
    barrier = Barrier(len(stores))

    def write(number: int) -> bool:
        barrier.wait()
        return stores[number].put_if_absent(key, b"writer %d" % number)

    with ThreadPoolExecutor(len(stores)) as pool:
        won = list(pool.map(write, range(len(stores))))
    names = [number for number, answer in enumerate(won) if answer]
    if len(names) != 1:
        return len(names), f"{len(names)} of {len(stores)} simultaneous writers won"
    stored = stores[0].get(key)
    if stored != b"writer %d" % names[0]:
        return 1, f"writer {names[0]} won, but {stored[:40]!r} is stored"
    if stores[0].put_if_absent(key, b"later") or stores[0].get(key) != stored:
        return 1, "a later create of the same key went through"
    return 1, ""
