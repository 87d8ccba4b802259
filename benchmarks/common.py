"""Parts that all benchmarks share: options, whole runs, turns, statistics, and the last line."""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kdscale.evaluate.results import environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CONFIGS = ROOT / "jobs" / "configs"
ASSETS = ROOT / "assets"
TEACHER = "smollm2-135m-instruct"
GEMMA = "gemma3-270m"
PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"

Row = dict[str, Any]

Quick = Annotated[bool, typer.Option("--quick", help="Run a small part and keep nothing.")]
Assets = Annotated[Path, typer.Option(help="Folder that assets.py wrote.")]
Turns = Annotated[int, typer.Option(min=1, help="Measured turns, after one to warm up.")]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each variant.")]
Keep = Annotated[Path, typer.Option("--keep", help="Folder of finished runs, not run again.")]
PeersPython = Annotated[Path, typer.Option(help="Python of the peers, from `make bench-setup`.")]


def report(
    name: str, rows: Sequence[Row], goals: Sequence[Row], *, keep: bool, **more: Any
) -> None:
    """Print one JSON object on the last line; with `keep`, write it to results/NAME.json too."""
    versions, machine = environment()
    versions |= more.pop("versions", {})
    found = {"benchmark": name, "machine": machine, "versions": versions, **more}
    found |= {"rows": list(rows), "goals": list(goals)}
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def goal(name: str, value: Any, bound: str, **more: Any) -> Row:
    """Return one entry of `goals`."""
    return {"name": name, "value": value, "goal": bound, **more}


def log(text: object) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def require(python: Path) -> Path:
    """Return the absolute path of the peers' `python`; SystemExit where it is missing."""
    if not python.exists():
        raise SystemExit(f"{python} does not exist: run `make bench-setup`.")
    return python.absolute()


# time


def seconds_of(function: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def take_turns(variants: Mapping[str, Callable[[], object]], turns: int) -> list[dict[str, float]]:
    """Return the seconds of every variant in each of `turns` turns, after one turn to warm up.

    Every other turn has the reverse order, so that a machine that slows down favours none of them.
    """
    found = []
    for turn in range(turns + 1):
        order = list(variants.items())[:: -1 if turn % 2 else 1]
        found.append({name: seconds_of(variant) for name, variant in order})
    return found[1:]


def ratios(turns: Sequence[Mapping[str, float]], over: str, under: str) -> list[float]:
    """Return `over` / `under` of each turn."""
    return [turn[over] / turn[under] for turn in turns]


# statistics


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def deviation(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return {NAME: mean, NAME_deviation: standard deviation}, which is 0 for a single value."""
    found = statistics.stdev(values) if len(values) > 1 else 0.0
    return {name: statistics.mean(values), f"{name}_deviation": found}


def interval(values: Sequence[float]) -> Row:
    """Return the mean of one value a seed and half its 95 % interval by Student's t, if any."""
    from scipy.stats import t

    half, count = None, len(values)
    if count > 1:
        half = float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return {"mean": statistics.mean(values), "half_width": half, "values": list(values)}


# whole runs


def kdscale(config: Path, output: Path, settings: Mapping[str, Any], *options: str) -> None:
    """Run `kdscale run` with `settings` by dotted name; CalledProcessError if it fails."""
    program = str(Path(sys.executable).with_name("kdscale"))
    changes = {**settings, "output": str(output)}
    overrides = [
        part for name, value in changes.items() for part in ("--set", f"{name}={json.dumps(value)}")
    ]
    subprocess.run([program, "run", str(config), *overrides, *options], cwd=ROOT, check=True)


def finished(config: Path, output: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results.json of a run in `output`, which is run or resumed where it is missing."""
    if not (output / "results.json").exists():
        kdscale(config, output, settings)
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found
