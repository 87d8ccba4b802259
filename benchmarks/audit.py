"""Seconds of `kdscale cache audit`: a thread for each codec, and operations shared among threads.

    python benchmarks/audit.py [--quick] [--busy N] [--turns N] [--keep FOLDER]

Sixteen sequences of 128 tokens of a cache over 4,096 ids, about 2,000 positions, from a teacher of
the quickstart's size that the script trains for a moment. Two variants take turns on the same work:

    shared      every tensor operation on all cores, as until the commit 48d7ece
    threads     every codec on a core of its own, as now

--busy starts so many processes that compute all the time, as other users of a machine would. Both
variants must give the same figures within rounding. The last line is one JSON object, also kept in
results/audit.json; --quick audits two sequences and keeps nothing.
"""

import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import ROOT, Keep, Quick, Turns, kdscale, log, report, seconds_of, spread
from kdscale.cache.fidelity import compare_codecs
from kdscale.cache.fidelity.audit import Audit, audit
from kdscale.cli.find import find_cache
from tests.runs import tiny_config, write_corpus

SETTINGS = {"data__tokenizer__vocab_size": 4096, "data__seq_len": 128}
Busy = Annotated[int, typer.Option(min=0, help="Processes that compute beside it.")]


def main(
    quick: Quick = False,
    busy: Busy = 0,
    turns: Turns = 5,
    keep_in: Keep = ROOT / "runs" / "audit",
) -> None:
    """Measure, print and keep."""
    cache = find_cache(str(captured(keep_in)))
    rows = 2 if quick else 16
    found: dict[str, Audit] = {}
    seconds: dict[str, list[float]] = {"shared": [], "threads": []}

    def run(variant: str) -> None:
        found[variant] = audit(cache, rows=rows, say=log)

    with computing(busy):
        for _ in range(1 if quick else turns):
            with patch.object(compare_codecs, "_single_threads", shared):
                seconds["shared"].append(seconds_of(lambda: run("shared")))
            seconds["threads"].append(seconds_of(lambda: run("threads")))
            log({name: round(values[-1], 1) for name, values in seconds.items()})
    assert_alike(found["shared"], found["threads"])
    positions = found["threads"].own.fidelity.positions
    report(
        "audit",
        [{"arm": name, "seconds": spread(values)} for name, values in seconds.items()],
        [],
        keep=not quick,
        positions=positions,
        vocab_size=SETTINGS["data__tokenizer__vocab_size"],
        codecs=len(found["threads"].codecs),
        threads=torch.get_num_threads(),
        busy=busy,
        load_average=os.getloadavg()[0],
        shared_over_threads=statistics.median(
            a / b for a, b in zip(seconds["shared"], seconds["threads"], strict=True)
        ),
    )


def captured(folder: Path) -> Path:
    """Return the output of a run up to its cache, made where it is missing."""
    output = folder / "output"
    if not list(output.glob("cache/*/manifests/*")):
        corpus = write_corpus(folder / "corpus")
        config = folder / "run.yaml"
        config.write_text(yaml.safe_dump(tiny_config(corpus, str(output), **SETTINGS)))
        kdscale(config, output, {}, "--until", "cache")
    return output


class Inline(ThreadPoolExecutor):
    """An executor that calls at once, in the thread that submits."""

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        """Call, and return the result as a future."""
        done: Future[Any] = Future()
        done.set_result(function(*arguments, **named))
        return done


@contextmanager
def shared(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Measure codec after codec, with every operation on all of torch's threads."""
    with Inline() as pool:
        yield pool


@contextmanager
def computing(count: int) -> Iterator[None]:
    """Keep `count` processes busy for as long as the block lasts."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def spin() -> None:
    """Compute for ever."""
    while True:
        sum(range(10**6))


def assert_alike(one: Audit, other: Audit) -> None:
    """Check that two audits have the same figures, within rounding."""
    for a, b in zip(one.codecs, other.codecs, strict=True):
        assert (a.config, a.bytes_stored) == (b.config, b.bytes_stored)
        for name in ("squared_bias", "variance", "kept_mass", "distinct_ids", "loss_bias"):
            first, second = getattr(a.fidelity, name), getattr(b.fidelity, name)
            assert abs(first - second) <= 1e-6 + 1e-5 * abs(first), (a.config, name, first, second)


if __name__ == "__main__":
    typer.run(main)
