"""What a fault costs: each of them in the middle of a capture and of a student's training.

    python benchmarks/faults.py [--quick]

A head and three workers with a core each, every one a real node with a network, processes and
folders of its own (tests/nodes.py), a real S3 server, and jobs submitted from outside. A run goes
through undisturbed first. Its cache and distill stages are then run again from what it made
before them: undisturbed, and under each fault. The time lost is what a stage took over the median
of the undisturbed ones; what comes out must be equal, bit for bit. Needs root, for the namespaces.

The last line is one JSON object, also kept in results/faults.json; --quick takes one fault and
keeps nothing.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from kdscale.store import open_store  # noqa: E402  after the path is set
from tests.nodes import HEALTH_CHECKS, Nodes, why_not  # noqa: E402
from tests.recovery import FAULTS, STEPS, UNITS, Ended, Stages, submit  # noqa: E402
from tests.runs import write_corpus  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "faults.json"
# Neither the teacher nor the evaluation is what is measured.
CHANGES: dict[str, Any] = {"teacher__training__steps": 50, "data__evaluate": {}}
TOTAL = {"cache": UNITS, "distill": STEPS}
UNDISTURBED = 3


def main(quick: bool = typer.Option(False, help="One fault, to see that it works.")) -> None:
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
    result = {
        "benchmark": "faults",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "torch", "ray")},
        "health_checks": HEALTH_CHECKS,
        "seconds": round(time.perf_counter() - started),
        "rows": rows,
        "goals": [
            {
                "name": "stages_equal_after_fault",
                "value": sum(row["equal"] for row in rows) / len(rows),
                "goal": ">=1",
            }
        ],
    }
    if not quick:
        KEPT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def measure(stages: Stages, stage: str, quick: bool) -> list[dict[str, Any]]:
    """A row for the undisturbed stage and one for each fault in it, printed as they come."""
    undisturbed = [stages.run(stage) for _ in range(1 if quick else UNDISTURBED)]
    base = statistics.median(ended.seconds for ended in undisturbed)
    spread = max(ended.seconds for ended in undisturbed) - min(e.seconds for e in undisturbed)
    print(f"{stage}: undisturbed {base:.1f} s, spread {spread:.1f} s", flush=True)
    rows = []
    for name, fault in list(FAULTS.items())[: 1 if quick else None]:
        ended = stages.run(stage, fault)
        wrong = stages.differences(ended, stage)
        rows.append(describe(stage, name, ended, base, spread, wrong))
        print(rows[-1], flush=True)
    return rows


def describe(
    stage: str, fault: str, ended: Ended, base: float, spread: float, wrong: list[str]
) -> dict[str, Any]:
    """One fault: when it struck, what it cost, where the stage went on."""
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
