"""Time and memory of loss and gradients: kdscale, dense PyTorch and the peers.

    make bench-setup
    python benchmarks/loss.py [--quick] [--repeats 7] [--peers-python PYTHON]

From the hidden states of 2,048 positions and the head's weight (576 wide, float32) to the loss and
the gradients of both, on two threads, at the vocabularies of SmolLM2 and Qwen. The losses are in
benchmarks/losses; worker.py counts their memory. All processes live through the whole run and take
turns, one loss at a time, so that a machine that slows down slows all of them; the first turn warms
up. The gradients of each are checked against float64 on a small problem before.

The memory goal compares whole peaks, gradients included. The time goals take the worse of the two
vocabularies. The last line is one JSON object, also kept in results/loss.json. --quick has 256
positions of one small vocabulary, once, and keeps nothing.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import (
    PEERS_PYTHON,
    PeersPython,
    Quick,
    Turns,
    goal,
    log,
    report,
    require,
    spread,
)
from benchmarks.losses.process import Process

POSITIONS, VOCABULARIES = 2048, (49_152, 151_936)
QUICK_POSITIONS, QUICK_VOCABULARIES = 256, (8192,)

KDSCALE, CAUSAL_LM, DENSE = "kdscale", "kdscale, cross-entropy", "dense PyTorch"
OURS = {KDSCALE: "ours", "kdscale, targets alone": "ours", CAUSAL_LM: "ours"}
HERE = ("dense PyTorch", "DeepSpeed", "DistillKit, zero", "DistillKit, bucket")
PEERS = ("TRL", "Liger-Kernel", "Liger-Kernel, compiled")
SLOW = ("Liger-Kernel, compiled",)  # to start: --quick leaves it out


def main(
    quick: Quick = False, repeats: Turns = 7, peers_python: PeersPython = PEERS_PYTHON
) -> None:
    """Measure all losses, print and keep."""
    peers = str(require(peers_python))
    positions, vocabularies = POSITIONS, VOCABULARIES
    if quick:
        positions, vocabularies, repeats = QUICK_POSITIONS, QUICK_VOCABULARIES, 1
    losses = [
        Process(name, OURS.get(name, "rivals"), peers if name in PEERS else sys.executable)
        for name in (*OURS, *HERE, *PEERS)
        if not (quick and name in SLOW)
    ]
    try:
        rows = [row for size in vocabularies for row in turns(losses, positions, size, repeats)]
    finally:
        for loss in losses:
            loss.end()
    versions: dict[str, str] = {}
    for loss in losses:
        versions |= loss.about.get("versions", {})
    for row in rows:
        log(row.line())
    report(
        "loss",
        [row.as_dict() for row in rows],
        goals(rows),
        keep=not quick,
        versions=versions,
        threads=2,
        positions=positions,
    )


@dataclass
class Row:
    """All turns of one loss at one vocabulary, the first of which is not timed."""

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
        """Largest peak of all turns: libraries keep buffers from the first one."""
        return max(run["peak_mib"] for run in self.runs)

    def as_dict(self) -> dict[str, Any]:
        """Return the row of the JSON object."""
        found = {"arm": self.name, "vocab_size": self.vocab_size}
        if self.process.failure is not None:
            return found | {"failure": self.process.failure}
        gradients = self.runs[0]["gradients_mib"]
        return found | {
            "seconds": {name: _rounded(value) for name, value in spread(self.seconds).items()},
            "peak_mib": _rounded(self.peak_mib),
            "peak_beyond_gradients_mib": _rounded(self.peak_mib - gradients),
            "loss": _rounded(self.runs[0]["loss"]),
            "gradient_error": _rounded(self.process.about["gradient_error"]),
        }

    def line(self) -> str:
        """Return a line for people to read."""
        if self.process.failure is not None:
            return f"{self.vocab_size:>8,} {self.name:24} {self.process.failure}"
        seconds = spread(self.seconds)
        return (
            f"{self.vocab_size:>8,} {self.name:24} {seconds['median']:8.3f} s "
            f"({seconds['min']:.3f} to {seconds['max']:.3f}) {self.peak_mib:8.0f} MiB"
        )


def turns(losses: Sequence[Process], positions: int, vocab_size: int, repeats: int) -> list[Row]:
    """Measure every loss in turn, `repeats` times after a first one."""
    rows = [Row(loss, vocab_size) for loss in losses]
    for turn in range(repeats + 1):
        for row in rows:
            if (run := row.process.measure(positions, vocab_size)) is not None:
                row.runs.append(run)
                log(f"{turn} of {repeats}: {row.name}, {vocab_size:,} ids, {run['seconds']:.3f} s")
    return rows


def goals(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compare memory with dense PyTorch, and time with cross-entropy and the best peer."""
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
        goal("memory_over_dense", memory, "<=0.125"),
        goal("time_over_cross_entropy", max(plain.values()), "<=1.05", by_vocab_size=plain),
        goal(
            "time_over_best_peer",
            peers[worst],
            "<1",
            best_peer=best[worst].name,
            by_vocab_size=peers,
        ),
    ]


def _ratio(ours: Row, other: Row) -> float:
    """Return the median of the ratios of seconds, turn by turn."""
    return median(one / two for one, two in zip(ours.seconds, other.seconds, strict=True))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    typer.run(main)
