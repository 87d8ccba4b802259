"""Figures of the reader benchmark: rows, goals and lines to read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks import common
from benchmarks.peers.session import OURS, PLAIN

GOAL = 3.0


@dataclass
class Measured:
    """All runs of one reader from one storage with a number of workers."""

    reader: str
    storage: str
    workers: int
    runs: list[dict[str, Any]] = field(default_factory=list)
    resumed: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """Ends of the output of failed runs."""

    def rates(self, phase: str) -> list[float]:
        """Return the tokens/s of each run in `phase`, cold or warm."""
        return [run[phase]["tokens"] / run[phase]["seconds"] for run in self.runs]

    def row(self, epoch_rows: int) -> dict[str, Any]:
        """Return one row of the results. An epoch is not whole where time ran out."""
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
        found = {"arm": self.reader, "storage": self.storage, "workers": self.workers}
        resumed = dict(self.resumed)
        if resumed:
            resumed["resume_seconds"] = spread(resumed["resume_seconds"])
        failed = {"failures": self.failures} if self.failures else {}
        return {**found, **phases, **memory, **resumed, **failed}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most, to four digits."""
    return {name: float(f"{value:.4g}") for name, value in common.spread(values).items()}


def goals(measured: Iterable[Measured], decode: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the benchmark's goals, each with its `best_peer`."""
    readers = list(measured)
    found = [
        _against_best(readers, f"{storage}_{phase}_vs_best_peer{suffix}", ours, storage, phase)
        for suffix, ours in (("", OURS), ("_unpacked", PLAIN))
        for storage, phase in (("local", "cold"), ("local", "warm"), ("s3", "cold"))
    ]
    pairs = zip(decode["decode_seconds"], decode["copy_seconds"], strict=True)
    ratios = [ours / copy for ours, copy in pairs]
    return [
        *found,
        common.goal("decode_over_memcpy", median(ratios), "<=2", min=min(ratios), max=max(ratios)),
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
    readers: list[Measured], name: str, ours: str, storage: str, phase: str
) -> dict[str, Any]:
    """Return our median tokens/s over the best peer's, each with its best number of workers."""
    best: dict[str, float] = {}
    for reader in readers:
        if reader.storage == storage:
            best[reader.reader] = max(best.get(reader.reader, 0.0), median(reader.rates(phase)))
    peer = max(best.keys() - {OURS, PLAIN}, key=best.__getitem__)
    return common.goal(name, best[ours] / best[peer], f">={GOAL:g}", best_peer=peer)
