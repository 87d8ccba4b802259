"""Cost of faults: each of them in the middle of a capture and of a student's training.

    python benchmarks/faults.py [--quick]

A head and three workers with a core each, every one a node with its network, processes and
folders (tests/nodes.py), a real S3 server, and jobs submitted from outside. A run goes
through undisturbed first. Its cache and distill stages are then run again from what it made
before them: undisturbed, and under each fault. The time lost is what a stage took over the median
of the undisturbed ones; what comes out must be equal, bit for bit. Needs root, for the namespaces.

The last line is one JSON object, also kept in results/faults.json; --quick takes one fault and
keeps nothing.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import Quick, Row, goal, log, report
from kdscale.store import open_store
from tests.nodes import HEALTH_CHECKS, Nodes, why_not
from tests.recovery import FAULTS, SHARDS, STEPS, Ended, Stages, submit
from tests.runs import write_corpus

# Teacher and evaluation are not measured.
CHANGES: dict[str, Any] = {"teacher__training__steps": 50, "data__evaluate": {}}
TOTAL = {"cache": SHARDS, "distill": STEPS}
UNDISTURBED = 3


def main(quick: Quick = False) -> None:
    """Measure, print and keep."""
    if (reason := why_not()) is not None:
        raise SystemExit(f"No nodes can be made here: {reason}.")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kdf", ignore_cleanup_errors=True) as folder:
        corpus = write_corpus(Path(folder) / "shared" / "corpus")
        with Nodes(Path(folder), corpus) as nodes:
            os.environ.update(nodes.server.env)
            whole = nodes.server.url + "/whole"
            job = submit(nodes, corpus, whole, **CHANGES)
            assert job.finish() == 0, job.log[-6000:]
            stages = Stages(nodes, corpus, open_store(whole), **CHANGES)
            rows = [row for stage in TOTAL for row in measure(stages, stage, quick)]
    equal = sum(row["equal"] for row in rows) / len(rows)
    report(
        "faults",
        rows,
        [goal("stages_equal_after_fault", equal, ">=1")],
        keep=not quick,
        health_checks=HEALTH_CHECKS,
        seconds=round(time.perf_counter() - started),
    )


def measure(stages: Stages, stage: str, quick: bool) -> list[Row]:
    """Return a row for each fault in one stage."""
    undisturbed = [stages.run(stage) for _ in range(1 if quick else UNDISTURBED)]
    seconds = [ended.seconds for ended in undisturbed]
    base, spread = statistics.median(seconds), max(seconds) - min(seconds)
    log(f"{stage}: undisturbed {base:.1f} s, spread {spread:.1f} s")
    rows = []
    for name, fault in list(FAULTS.items())[: 1 if quick else None]:
        ended = stages.run(stage, fault)
        wrong = stages.differences(ended, stage)
        rows.append(describe(stage, name, ended, base, spread, wrong))
        log(rows[-1])
    return rows


def describe(
    stage: str, fault: str, ended: Ended, base: float, spread: float, wrong: list[str]
) -> Row:
    """Return the row of one fault: when it struck, what it cost, where the stage resumed."""
    return {
        "stage": stage,
        "fault": fault,
        "of": TOTAL[stage],
        "done_then": ended.done_then,
        "struck_at_seconds": round(ended.struck_at, 1),
        "starts_at": ended.starts,
        "jobs": ended.submissions,
        "seconds": round(ended.seconds, 1),
        "undisturbed_seconds": round(base, 1),
        "undisturbed_spread": round(spread, 1),
        "lost_seconds": round(ended.seconds - base, 1),
        "lost_share": round((ended.seconds - base) / base, 3),
        "equal": not wrong,
        "differences": wrong[:3],
    }


if __name__ == "__main__":
    typer.run(main)
