"""Several runs on one page: what each of their students is worth, and what its cache took.

Runs whose configs differ in nothing but seed, name and output are the same experiment: they get a
line with the mean over seeds and its 95 % interval (Student's t, as seeds are few).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.report import facts, units
from kdscale.report.charts import Series, line_chart
from kdscale.report.facts import Table
from kdscale.report.layout import figure, figures_table, page, section
from kdscale.report.load import Run
from kdscale.report.markdown import plain, table
from kdscale.report.markup import Markup, tag
from kdscale.report.words import classifies, words_of

_SEEDLESS = ("seed", "name", "output")


@dataclass(frozen=True)
class Figure:
    """One number of a run that runs are compared by."""

    name: str
    values: tuple[float | None, ...]  # of each run, in their order
    is_share: bool

    def text(self, value: float | None) -> str:
        """As a person reads it."""
        return units.percent(value) if self.is_share else units.number(value, 4)


def check_comparable(runs: Sequence[Run]) -> None:
    """KdscaleError for runs of several tasks, or without an evaluation set in common."""
    tasks = sorted({run.results["task"] for run in runs})
    if len(tasks) > 1:
        raise KdscaleError(
            f"Runs of the tasks {', '.join(tasks)} have no figures in common.",
            "Compare runs of one task.",
        )
    if not common_domains(runs):
        raise KdscaleError(
            "The runs have no evaluation set in common.",
            "Compare runs that were evaluated on the same sets.",
        )


def common_domains(runs: Sequence[Run]) -> list[str]:
    """The evaluation sets that all runs have, `validation` first."""
    first, *others = (facts.domains(run.results) for run in runs)
    return [name for name in first if all(name in found for found in others)]


def experiments(runs: Sequence[Run]) -> list[list[int]]:
    """The places of runs that are the same experiment under several seeds, in the runs' order."""
    groups: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        tree = {key: value for key, value in run.config.items() if key not in _SEEDLESS}
        key = json.dumps(tree, sort_keys=True, default=str) if run.config else str(place)
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def figures(runs: Sequence[Run], domain: str) -> list[Figure]:
    """What runs are compared by on `domain`."""
    results = [run.results for run in runs]
    is_class = classifies(results[0])
    score = "f1_macro" if is_class else "loss"
    label = "F1" if is_class else "loss"

    def of(model: str, name: str) -> tuple[float | None, ...]:
        found = (facts.score(each, model, domain) for each in results)
        return tuple(None if s is None else _number(s.get(name)) for s in found)

    shown = [
        Figure(f"{model}'s {label}", of(model, score), is_class)
        for model in facts.in_order({m: None for each in results for m in each["models"]})
    ]
    gaps = tuple(each["gap_recovered"].get(domain) for each in results)
    shown.append(Figure("Gap recovered", gaps, True))
    shown.append(Figure("Agreement", of("student", "agreement_top1"), True))
    return [each for each in shown if any(value is not None for value in each.values)]


def compare_table(runs: Sequence[Run], domain: str) -> Table:
    """A line a run, and a line for each experiment of several seeds."""
    found = figures(runs, domain)
    target = words_of(runs[0].results).target
    header = ["Run", "Seed", "Student", f"Bytes a {target}", *(each.name for each in found)]
    rows = []
    for group in experiments(runs):
        for place in group:
            results = runs[place].results
            rows.append(
                [
                    results["run"],
                    str(results["seed"]),
                    _size(results),
                    _bytes(results),
                    *(each.text(each.values[place]) for each in found),
                ]
            )
        if len(group) > 1:
            name = f"{runs[group[0]].results['run']}, mean of {len(group)} seeds"
            means = (_mean_text(each, group) for each in found)
            first = runs[group[0]].results
            rows.append([name, "all", _size(first), _bytes(first), *means])
    return Table(f"{domain}: {len(runs)} runs", header, rows)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of its 95 % interval) of two values or more."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean(values), half


def render_comparison(runs: Sequence[Run]) -> str:
    """The page of `runs`. KdscaleError where they cannot be compared."""
    check_comparable(runs)
    domains = common_domains(runs)
    title = "Comparison of runs"
    names = ", ".join(dict.fromkeys(run.results["run"] for run in runs))
    header = tag(
        "header",
        tag("p", f"{len(runs)} runs", class_="eyebrow"),
        tag("h1", title),
        tag("p", names, class_="lead"),
    )
    tables = [figures_table(compare_table(runs, domain)) for domain in domains]
    note = (
        "An interval behind a mean is that of the mean over seeds, 95 %, by Student's t. The gap "
        "recovered is the student's way from the control to the teacher, in loss."
    )
    sections = (
        section("Figures", *tables, note=note),
        section("Size and quality", *(_chart(runs, domain) for domain in domains)),
    )
    return page(f"{title} · kdscale", header, tag("main", *sections))


def summarise_comparison(runs: Sequence[Run]) -> str:
    """The same tables as Markdown."""
    check_comparable(runs)
    parts = ["# Comparison of runs"]
    for domain in common_domains(runs):
        parts += [f"## {plain(domain)}", table(compare_table(runs, domain))]
    return "\n\n".join(parts) + "\n"


def _chart(runs: Sequence[Run], domain: str) -> Markup | None:
    """The gap recovered, or F1, over the bytes that a target takes; means of experiments."""
    found = {each.name: each for each in figures(runs, domain)}
    shown = found.get("student's F1") or found.get("Gap recovered")
    if shown is None:
        return None
    points = []
    for group in experiments(runs):
        values = [shown.values[place] for place in group]
        known = [value for value in values if value is not None]
        cache = runs[group[0]].results["cache"]
        if known and cache is not None:
            points.append((float(cache["bytes_per_token"]), mean(known)))
    if len(points) < 2:
        return None
    target = words_of(runs[0].results).target
    chart = line_chart(
        f"compare-{domain}",
        f"{shown.name}, {domain}",
        [Series(shown.name, "student", sorted(points))],
        "",
        x_label=f"bytes a {target}",
        y_format=units.whole_percent,
    )
    return figure(domain, f"{shown.name} over the bytes that a {target} takes.", chart)


def _mean_text(each: Figure, group: Sequence[int]) -> str:
    values = [each.values[place] for place in group]
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < 2:
        return units.NONE
    middle, half = t_interval(known)
    spread = units.number(100 * half, 1) if each.is_share else units.number(half, 4)
    return f"{each.text(middle)} ± {spread}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _size(results: Any) -> str:
    student = results["models"].get("student")
    return units.count(student["parameters"]) if student else units.NONE


def _bytes(results: Any) -> str:
    cache = results["cache"]
    return units.number(cache["bytes_per_token"], 1) if cache else units.NONE
