"""Whole runs of kdscale as parts of a benchmark: each is made once and read from then on."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[1]


def finished(config: Path, output: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The results of the run of `config` with `settings` (dotted names) in the folder `output`; it
    is made where it is missing, and goes on where it was stopped."""
    if not (output / "results.json").exists():
        run(config, output, settings)
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found


def run(config: Path, output: Path, settings: Mapping[str, Any], *options: str) -> None:
    """`kdscale run` with more options, to its end. CalledProcessError where it fails."""
    program = str(Path(sys.executable).with_name("kdscale"))
    changes = {**settings, "output": str(output)}
    overrides = [
        part for name, value in changes.items() for part in ("--set", f"{name}={json.dumps(value)}")
    ]
    subprocess.run([program, "run", str(config), *overrides, *options], cwd=ROOT, check=True)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The mean of one value a seed, and half the width of its 95 % interval by Student's t, which a
    single value has not."""
    from kdscale.report.compare import t_interval

    if len(values) < 2:
        return {"mean": mean(values), "half_width": None, "values": list(values)}
    middle, half = t_interval(values)
    return {
        "mean": middle,
        "half_width": half if math.isfinite(half) else None,
        "values": list(values),
    }
