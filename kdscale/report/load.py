"""The data of a report, read from a run's output: results, metrics, config.

The config is kept as text and as a plain tree: a report has to open runs of other versions, whose
config this version may refuse.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdscale.config.load import parse_tree
from kdscale.errors import KdscaleError
from kdscale.evaluate.results import read_results
from kdscale.evaluate.schema import Results
from kdscale.run.finished_run import CONFIG_KEY, FinishedRun
from kdscale.run.stage_names import CURVES
from kdscale.store import Store
from kdscale.store.redact import redact

Point = tuple[float, float]
Line = dict[str, Any]


@dataclass(frozen=True)
class ReportData:
    """Results, metrics and config of one run."""

    results: Results
    metrics: dict[str, list[Line]]  # by stage, in the order logged; only stages that logged
    config: dict[str, Any]  # empty where the run has no resolved config
    config_text: str

    def series(self, stage: str, key: str) -> list[Point]:
        """Return (step, value) of the lines of `stage` that have `key`."""
        lines = self.metrics.get(stage, [])
        return [(line["step"], line[key]) for line in lines if line.get(key) is not None]

    def setting(self, path: str) -> Any:
        """Return the config's value at a dotted path such as `distill.training.steps`, or None."""
        return setting(self.config, path)


def setting(config: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of a config tree, or None where the path ends early."""
    value: Any = config
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def load_report_data(store: Store) -> ReportData:
    """Read the run in `store`; metrics and config may be missing, results may not.

    Raises KdscaleError where `results.json` is missing or a file cannot be parsed.
    """
    text = redact(FinishedRun(store).config_text)
    names = [name for curves in CURVES.values() for name in curves]
    metrics = {name: _lines(store, f"metrics/{name}.jsonl") for name in names}
    return ReportData(
        results=read_results(store),
        metrics={stage: lines for stage, lines in metrics.items() if lines},
        config=parse_tree(text, f"{store}/{CONFIG_KEY}") if text.strip() else {},
        config_text=text,
    )


def _text(store: Store, key: str) -> str | None:
    return store.get(key).decode(errors="replace") if store.exists(key) else None


def _lines(store: Store, key: str) -> list[Line]:
    """Return the JSON objects of a metrics file, without a last line cut short by a kill."""
    lines = (_text(store, key) or "").splitlines()
    parsed = []
    for index, line in enumerate(lines):
        try:
            parsed.append(_numbers(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if index == len(lines) - 1:
                break
            raise KdscaleError(
                f"{key} in {store}, line {index + 1} is not a line of metrics: {line[:80]!r}.",
                "Delete the line: the report reads complete lines only.",
            ) from error
    return parsed


def _numbers(line: Line) -> Line:
    """Return `line` without what is not a number; `step` has to be one."""
    numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
    return {**numbers, "step": float(numbers["step"])}
