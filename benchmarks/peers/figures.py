"""From what was measured to the benchmark's figures: rows, goals and lines to read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.peers.session import CAUSAL_LM, OURS

GOAL = 3.0


@dataclass
class Measured:
    """All runs of one arm from one storage with so many workers."""

    arm: str
    storage: str
    workers: int
    runs: list[dict[str, Any]] = field(default_factory=list)
    resumed: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """The last words of runs that ended in an error."""

    def rates(self, phase: str) -> list[float]:
        """Tokens/s of each run in `phase`, cold or warm."""
        return [run[phase]["tokens"] / run[phase]["seconds"] for run in self.runs]

    def row(self, epoch_rows: int) -> dict[str, Any]:
        """One object of the results. An epoch is not whole where time ran out."""
        phases = {
            phase: {
                "tokens_per_second": spread(self.rates(phase)),
                "first_batch_seconds": spread(
                    [run[phase]["first_batch_seconds"] for run in self.runs]
                ),
                "is_whole": all(run[phase]["rows"] == epoch_rows for run in self.runs),
            }
            for phase in ("cold", "warm")
        }
        memory = {
            name: median(run[name] for run in self.runs) for name in ("peak_mib", "import_mib")
        }
        found = {"arm": self.arm, "storage": self.storage, "workers": self.workers}
        resumed = dict(self.resumed)
        if resumed:
            resumed["resume_seconds"] = spread(resumed["resume_seconds"])
        failed = {"failures": self.failures} if self.failures else {}
        return {**found, **phases, **memory, **resumed, **failed}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most, to four digits."""
    found = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def goals(measured: Iterable[Measured], decode: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the benchmark's goals; `best_peer` says which one it was."""
    arms = list(measured)
    found = [
        _against_best(arms, f"{storage}_{phase}_vs_best_peer{suffix}", ours, storage, phase)
        for suffix, ours in (("", OURS), ("_unpacked", CAUSAL_LM))
        for storage, phase in (("local", "cold"), ("local", "warm"), ("s3", "cold"))
    ]
    pairs = zip(decode["decode_seconds"], decode["copy_seconds"], strict=True)
    ratios = [ours / copy for ours, copy in pairs]
    return [
        *found,
        {"name": "decode_over_memcpy", "value": median(ratios), "goal": "<=2", **_range(ratios)},
    ]


def lines(rows: Iterable[dict[str, Any]]) -> Iterable[str]:
    """Yield a table for the terminal."""
    head = ("arm", "storage", "workers", "cold Mtok/s", "warm", "first s", "peak MiB")
    yield "{:<17}{:<9}{:>8}{:>13}{:>9}{:>9}{:>10}  resume s, lost, repeated".format(*head)
    for row in rows:
        cold, warm = row["cold"], row["warm"]
        resumed = ""
        if "rows_lost" in row:
            seconds = row["resume_seconds"]["median"]
            resumed = f"{seconds:.3f}, {row['rows_lost']}, {row['rows_repeated']}"
        yield (
            f"{row['arm']:<17}{row['storage']:<9}{row['workers']:>8}"
            f"{cold['tokens_per_second']['median'] / 1e6:>13.2f}"
            f"{warm['tokens_per_second']['median'] / 1e6:>9.2f}"
            f"{cold['first_batch_seconds']['median']:>9.3f}{row['peak_mib']:>10.0f}  {resumed}"
        )


def _against_best(
    arms: list[Measured], name: str, ours: str, storage: str, phase: str
) -> dict[str, Any]:
    """Our median tokens/s over the best peer's, each with the workers that suit it best."""
    best: dict[str, float] = {}
    for arm in arms:
        if arm.storage == storage:
            best[arm.arm] = max(best.get(arm.arm, 0.0), median(arm.rates(phase)))
    peer = max(best.keys() - {OURS, CAUSAL_LM}, key=best.__getitem__)
    return {
        "name": name,
        "value": best[ours] / best[peer],
        "goal": f">={GOAL:g}",
        "best_peer": peer,
    }


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "max": max(values)}
