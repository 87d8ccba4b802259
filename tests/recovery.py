"""One stage of a small run, submitted to real nodes, with a fault in the middle of it.

A stage starts from copies of what an undisturbed run made before it, so that every fault strikes
the same work, and its output is compared with that run: the cache shard by shard, the losses step
by step.
"""

import json
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdscale.store import Store, open_store
from tests.nodes import Node, Nodes, kill
from tests.runs import read_metrics, tiny_config, write_config
from tests.watched import Watched

TRAIN_WORKER = r"^ray::\S*TrainWorker"
DRIVER = r"python\S* jobs/run\.py"
SHARDS, STEPS, CHECKPOINT_EVERY = 40, 120, 10
# What each stage finds in its output.
INPUTS = {"cache": ("prepared/", "teacher/"), "distill": ("prepared/", "teacher/", "cache/")}
CUT_SECONDS, BLINK_SECONDS, OUTAGE_SECONDS = 60, 8, 30
_LOSSES = ("train/loss", "train/ce_loss", "train/kl", "validation/loss", "tokens")


@dataclass(frozen=True)
class Ended:
    """A stage that came to its end, by `submissions` jobs in `seconds` from the first on."""

    store: Store
    log: str
    seconds: float
    submissions: int
    struck_at: float = 0.0
    done_then: int = 0  # shards committed, or the student's newest checkpoint

    @property
    def starts(self) -> list[int]:
        """The start of each attempt of the workers: shards committed, or the student's step."""
        shards = re.findall(rf"rank 0 of 2 .*: (\d+) of {SHARDS} shards to capture", self.log)
        steps = re.findall(r"rank 0 of 2 .*student: .* (?:resumed at step (\d+)|started)", self.log)
        return [SHARDS - int(shard) for shard in shards] or [int(step or 0) for step in steps]


# Each harms the running stage, waits if that takes a time, and returns the node that has to be
# started again afterwards.


def kill_worker(nodes: Nodes) -> Node | None:
    """Kill -9 of one rank."""
    (pid,) = _busy(nodes).find(TRAIN_WORKER)
    kill(pid)
    return None


def kill_node(nodes: Nodes) -> Node | None:
    """All processes of a node that has a rank, at once."""
    node = _busy(nodes)
    node.kill()
    return node


def cut_node(nodes: Nodes) -> Node | None:
    """Cut a node with a rank off the network for a minute: longer than the cluster waits."""
    return _cut(nodes, CUT_SECONDS)


def blink_node(nodes: Nodes) -> Node | None:
    """Cut a node with a rank off the network for a moment that the cluster waits out."""
    _cut(nodes, BLINK_SECONDS)
    return None


def kill_driver(nodes: Nodes) -> Node | None:
    """Kill -9 of the job's driver on the head. The job fails, and is submitted again."""
    for pid in nodes.head.find(DRIVER):
        kill(pid)
    return None


def stop_store(nodes: Nodes) -> Node | None:
    """Stop the S3 server for half a minute."""
    nodes.server.stop()
    time.sleep(OUTAGE_SECONDS)
    nodes.server.start()
    return None


FAULTS: dict[str, Callable[[Nodes], Node | None]] = {
    "worker killed": kill_worker,
    "node killed": kill_node,
    f"node cut off for {CUT_SECONDS} s": cut_node,
    f"node cut off for {BLINK_SECONDS} s": blink_node,
    "driver killed": kill_driver,
    f"S3 server down for {OUTAGE_SECONDS} s": stop_store,
}


def _busy(nodes: Nodes) -> Node:
    """Return a node with a rank on it."""
    return nodes.running(TRAIN_WORKER)[0]


def _cut(nodes: Nodes, seconds: float) -> Node:
    node = _busy(nodes)
    node.cut()
    time.sleep(seconds)
    node.reconnect()
    return node


class Stages:
    """Stages of the run of `tiny_config` over `corpus`, with `changes`; `base` has its results."""

    def __init__(self, nodes: Nodes, corpus: Path, base: Store, **changes: Any) -> None:
        self._nodes = nodes
        self._corpus = corpus
        self._base = base
        self._changes = changes

    def run(self, stage: str, fault: Callable[[Nodes], Node | None] | None = None) -> Ended:
        """Run `stage` in a new output, with a fault in the middle. AssertionError if it fails."""
        store = open_store(f"{self._nodes.server.url}/{uuid.uuid4().hex[:12]}")
        for key in self._base.list():
            if key.startswith(INPUTS[stage]):
                store.put(key, self._base.get(key))
        started = time.monotonic()
        job = self._submit(store, stage)
        ended = Ended(store, "", 0.0, 1)
        node = None
        try:
            if fault is not None:
                job.wait_for(lambda: _in_the_middle(store, stage), f"the middle of {stage}")
                ended = replace(
                    ended, struck_at=time.monotonic() - started, done_then=_done(store, stage)
                )
                node = fault(self._nodes)
            code, log = job.finish(), job.log
            if code and fault is kill_driver:
                # What follows is the end of the log once more.
                before = log.partition("\nreason: ")[0]
                job = self._submit(store, stage)
                code, log = job.finish(), before + job.log
                ended = replace(ended, submissions=2)
        finally:
            job.end()
            if node is not None:
                self._nodes.restart(node)
        assert code == 0, log[-6000:]
        return replace(ended, log=log, seconds=time.monotonic() - started)

    def _submit(self, store: Store, stage: str) -> Watched:
        return submit(self._nodes, self._corpus, store.url, "--only", stage, **self._changes)

    def differences(self, ended: Ended, stage: str) -> list[str]:
        """Return the differences from the undisturbed run."""
        if stage == "cache":
            return _unequal("shard", _digests(ended.store), _digests(self._base))
        return [
            text
            for name in ("distill", "baseline")
            for text in _unequal(
                f"{name} step", _losses(ended.store, name), _losses(self._base, name)
            )
        ]


def submit(nodes: Nodes, corpus: Path, output: str, *options: str, **changes: Any) -> Watched:
    """`kdscale submit --follow` from outside of the nodes, with `changes` of `tiny_config`."""
    config = tiny_config(corpus, output, distill__cache_folder=None, **changes)
    path = write_config(nodes.folder / f"{uuid.uuid4().hex[:8]}.yaml", config)
    arguments = ("submit", str(path), "--address", nodes.url, "--follow", *options)
    return Watched(*arguments, env=nodes.env)


def _in_the_middle(store: Store, stage: str) -> bool:
    done = _done(store, stage)
    return done >= 6 if stage == "cache" else done >= 30


def _done(store: Store, stage: str) -> int:
    """Shards committed, or the step of the student's newest checkpoint."""
    if stage == "cache":
        return sum("/commits/" in key for key in store.list("cache/"))
    keys = [key for key in store.list("checkpoints/student") if key.endswith("/complete.json")]
    return max((int(key.split("/")[-2].removeprefix("step-")) for key in keys), default=0)


def _digests(store: Store) -> dict[Any, Any]:
    """Return the digest of every shard's object."""
    keys = [key for key in store.list("cache/") if "/commits/" in key]
    commits = [json.loads(store.get(key)) for key in keys]
    return {commit["shard"]: commit["digest"] for commit in commits}


def _losses(store: Store, name: str) -> dict[Any, Any]:
    """Return the losses that were logged at every step."""
    lines = read_metrics(store.get(f"metrics/{name}.jsonl"))
    return {line["step"]: [line.get(key) for key in _LOSSES] for line in lines}


def _unequal(what: str, found: dict[Any, Any], expected: dict[Any, Any]) -> list[str]:
    wrong = [key for key in expected | found if found.get(key) != expected.get(key)]
    return [f"{what} {key}: {found.get(key)}, not {expected.get(key)}" for key in wrong]
