"""What loss and gradient cost in time and memory: kdscale, dense PyTorch and the peers.

    make bench-setup
    python benchmarks/loss.py [--quick] [--repeats 7] [--peers-python PYTHON]

From the hidden states of 2,048 positions and the head's weight (576 wide, float32) to the loss and
the gradients of both, on two threads, at the vocabularies of SmolLM2 and Qwen. Arms are in
benchmarks/losses: what each of them computes, what it is given of the teacher, and how its memory
is counted (worker.py). All processes live through the whole run and take turns, one loss at a time,
so that a machine that slows down slows all of them; the first turn warms up. Every arm's gradients
are checked against float64 on a small problem before.

The memory goal compares whole peaks, the gradients that both arms must give included. The time
goals take the worse of the two vocabularies. The last line is one JSON object, also kept in
results/loss.json. --quick has 256 positions of one small vocabulary, once, and keeps nothing.
"""

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from benchmarks.losses.process import Process  # noqa: E402  needs the path above

PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
KEPT = ROOT / "benchmarks" / "results" / "loss.json"
POSITIONS, VOCABULARIES = 2048, (49_152, 151_936)
QUICK_POSITIONS, QUICK_VOCABULARIES = 256, (8192,)

KDSCALE, CAUSAL_LM, DENSE = "kdscale", "kdscale, cross-entropy", "dense PyTorch"
OURS = {
    KDSCALE: "kdscale_fused",
    "kdscale, targets alone": "kdscale_fused",
    CAUSAL_LM: "kdscale_fused",
    DENSE: "dense",
    "DeepSpeed": "deepspeed_opsd",
    "DistillKit, zero": "distillkit",
    "DistillKit, bucket": "distillkit",
}
PEERS = {
    "TRL": "trl_gkd",
    "Liger-Kernel": "liger_chunked",
    "Liger-Kernel, compiled": "liger_chunked",
}
SLOW = ("Liger-Kernel, compiled",)  # to start: --quick leaves it out


def main(
    quick: bool = typer.Option(False, help="A small problem once, to see that it works."),
    repeats: int = typer.Option(7, help="Measured turns of each arm."),
    peers_python: Path = typer.Option(PEERS_PYTHON, help="The peers' Python."),
) -> None:
    """Measure all arms, print and keep."""
    if not peers_python.exists():
        raise SystemExit(f"{peers_python} does not exist: run `make bench-setup`.")
    positions, vocabularies = POSITIONS, VOCABULARIES
    if quick:
        positions, vocabularies, repeats = QUICK_POSITIONS, QUICK_VOCABULARIES, 1
    python = {
        name: (module, sys.executable if name in OURS else str(peers_python.absolute()))
        for name, module in (OURS | PEERS).items()
        if not (quick and name in SLOW)
    }
    arms = [Process(name, *where) for name, where in python.items()]
    try:
        rows = [row for size in vocabularies for row in turns(arms, positions, size, repeats)]
    finally:
        for arm in arms:
            arm.end()
    found = {
        "benchmark": "loss",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "threads": 2},
        "versions": {
            name: text for arm in arms for name, text in arm.about.get("versions", {}).items()
        },
        "positions": positions,
        "rows": [row.as_dict() for row in rows],
        "goals": goals(rows),
    }
    for row in rows:
        print(row.line())
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


@dataclass
class Row:
    """All turns of one arm at one vocabulary, the first of which is not timed."""

    process: Process
    vocab_size: int
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.process.name

    @property
    def seconds(self) -> list[float]:
        return [run["seconds"] for run in self.runs[1:]]

    @property
    def peak_mib(self) -> float:
        """The most of all turns: libraries keep buffers from the first one."""
        return max(run["peak_mib"] for run in self.runs)

    def as_dict(self) -> dict[str, Any]:
        """As the JSON object has it."""
        found = {"arm": self.name, "vocab_size": self.vocab_size}
        if self.process.failure is not None:
            return found | {"failure": self.process.failure}
        gradients = self.runs[0]["gradients_mib"]
        return found | {
            "seconds": _spread(self.seconds),
            "peak_mib": _rounded(self.peak_mib),
            "peak_beyond_gradients_mib": _rounded(self.peak_mib - gradients),
            "loss": _rounded(self.runs[0]["loss"]),
            "gradient_error": _rounded(self.process.about["gradient_error"]),
        }

    def line(self) -> str:
        """For a person to read."""
        if self.process.failure is not None:
            return f"{self.vocab_size:>8,} {self.name:24} {self.process.failure}"
        spread = _spread(self.seconds)
        return (
            f"{self.vocab_size:>8,} {self.name:24} {spread['median']:8.3f} s "
            f"({spread['min']:.3f} to {spread['max']:.3f}) {self.peak_mib:8.0f} MiB"
        )


def turns(arms: Sequence[Process], positions: int, vocab_size: int, repeats: int) -> list[Row]:
    """Every arm in turn, `repeats` times after a first one."""
    rows = [Row(arm, vocab_size) for arm in arms]
    for turn in range(repeats + 1):
        for row in rows:
            if (run := row.process.measure(positions, vocab_size)) is not None:
                row.runs.append(run)
                _tell(f"{turn} of {repeats}: {row.name}, {vocab_size:,} ids", run)
    return rows


def goals(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """DESIGN.md section 8, and no slower than any peer."""
    sizes = sorted({row.vocab_size for row in rows})
    of = {(row.name, row.vocab_size): row for row in rows if row.process.failure is None}
    memory = of[KDSCALE, sizes[-1]].peak_mib / of[DENSE, sizes[-1]].peak_mib
    plain = {size: _ratio(of[KDSCALE, size], of[CAUSAL_LM, size]) for size in sizes}
    best = {
        size: min(
            (row for (name, v), row in of.items() if v == size and not name.startswith(KDSCALE)),
            key=lambda row: median(row.seconds),
        )
        for size in sizes
    }
    peers = {size: _ratio(of[KDSCALE, size], best[size]) for size in sizes}
    worst = max(sizes, key=peers.__getitem__)
    return [
        {"name": "memory_over_dense", "value": memory, "goal": "<=0.125"},
        {
            "name": "time_over_cross_entropy",
            "value": max(plain.values()),
            "goal": "<=1.05",
            "by_vocab_size": plain,
        },
        {
            "name": "time_over_best_peer",
            "value": peers[worst],
            "goal": "<1",
            "best_peer": best[worst].name,
            "by_vocab_size": peers,
        },
    ]


def _ratio(ours: Row, other: Row) -> float:
    """Median of the ratios of seconds, turn by turn."""
    return median(one / two for one, two in zip(ours.seconds, other.seconds, strict=True))


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: _rounded(value) for name, value in found.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _tell(what: str, run: dict[str, Any]) -> None:
    text = f"{what}: {run['seconds']:.3f} s, {run['peak_mib']:.0f} MiB"
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
