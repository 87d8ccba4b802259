"""Comparison of several runs as figures and tables: what their students score, what differs.

Runs whose configs differ in nothing but seed, name and output are the same experiment: they get a
line with the mean over seeds and its 95 % interval (Student's t, as seeds are few).
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.evaluate.results import common_loss
from kdscale.report import facts
from kdscale.report import formatting as units
from kdscale.report.comparable import comparable_groups, not_comparable, same_teacher
from kdscale.report.facts import classifies, task_labels
from kdscale.report.load import ReportData
from kdscale.report.markdown import plain, table
from kdscale.report.tables import Table, table_json

_ABSENT = object()  # where a run's config has no such setting
_SEEDLESS = ("seed", "name", "output")


@dataclass(frozen=True)
class Figure:
    """One number of a run that runs are compared by."""

    name: str
    values: tuple[float | None, ...]  # of each run, in their order
    is_share: bool

    def text(self, value: float | None) -> str:
        """Format `value` for people."""
        return units.percent(value) if self.is_share else units.number(value, 4)


@dataclass(frozen=True)
class Dots:
    """The seeds' values of one experiment, their mean, and its 95 % interval where there is one."""

    name: str
    values: tuple[float, ...]
    middle: float
    interval: tuple[float, float] | None
    text: str  # mean and interval as the page writes them


def check_comparable(runs: Sequence[ReportData]) -> None:
    """Raise KdscaleError for runs of several tasks, or without a common evaluation set."""
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


def common_domains(runs: Sequence[ReportData]) -> list[str]:
    """Return the evaluation sets that all runs have, `validation` first."""
    first, *others = (facts.domains(run.results) for run in runs)
    return [name for name in first if all(name in found for found in others)]


def experiments(runs: Sequence[ReportData]) -> list[list[int]]:
    """Return the places of runs that are one experiment under several seeds, in their order."""
    groups: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        tree = {key: value for key, value in run.config.items() if key not in _SEEDLESS}
        key = json.dumps(tree, sort_keys=True, default=str) if run.config else str(place)
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def figures(runs: Sequence[ReportData], domain: str) -> list[Figure]:
    """Return the numbers that runs are compared by on `domain`."""
    results = [run.results for run in runs]
    is_class = classifies(results[0])
    # The loss a token of one run and of another compare where all tokens are the same.
    of_tokens = common_loss(next((r["alignment"] for r in results if "alignment" in r), None))
    score = "f1_macro" if is_class else of_tokens
    label = "F1" if is_class else {"loss": "loss", "bits_per_byte": "loss, bits/byte"}[of_tokens]

    def of(model: str, name: str) -> tuple[float | None, ...]:
        found = (facts.score(each, model, domain) for each in results)
        return tuple(None if s is None else _number(s.get(name)) for s in found)

    shown = [
        Figure(_figure_name(model, label), of(model, score), is_class)
        for model in facts.in_order({m: None for each in results for m in each["models"]})
    ]
    if same_teacher(runs):
        gaps = tuple(each["gap_recovered"].get(domain) for each in results)
        shown.append(Figure("Gap recovered", gaps, True))
        shown.append(Figure("Agreement", of("student", "agreement_top1"), True))
    aligned = (dict(facts.aligned_sets(each)).get(domain) for each in results)
    with_target = tuple(None if found is None else found["share"] for found in aligned)
    shown.append(Figure("Positions with a target", with_target, True))
    return [each for each in shown if any(value is not None for value in each.values)]


def _figure_name(model: str, label: str) -> str:
    if model == facts.BEFORE:
        return f"{label[0].upper()}{label[1:]} before training"
    return f"{model.capitalize()}'s {label}"


def compare_table(runs: Sequence[ReportData], domain: str) -> Table:
    """Return a line a run, and a line for each experiment of several seeds."""
    found = figures(runs, domain)
    target = task_labels(runs[0].results).target
    header = ["Run", "Seed", "Student", f"Bytes per {target}", *(each.name for each in found)]
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
    return Table(f"{domain}: {len(runs)} run{'s' * (len(runs) > 1)}", header, rows)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return (mean, half the width of its 95 % interval) of two values or more."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean(values), half


def joined(runs: Sequence[ReportData]) -> list[tuple[str, list[ReportData]]]:
    """Return each common evaluation set with runs that can be compared on it, group by group."""
    return [
        (domain, [runs[place] for place in group])
        for domain in common_domains(runs)
        for group in comparable_groups(runs, domain)
    ]


def reservations(runs: Sequence[ReportData]) -> list[str]:
    """Return what of the runs is not comparable, and why."""
    return not_comparable(runs, common_domains(runs), labels(runs))


def headline(runs: Sequence[ReportData]) -> str:
    """Return which experiment has the best student, by the main figure, of comparable runs."""
    _, main = joined(runs)[0]
    if len(main) == 1 and len(runs) > 1:
        return f"No two of these {len(runs)} runs can be compared."
    among = "" if len(main) == len(runs) else f" among {len(main)} runs that can be compared"
    return _best(main, among)


def _best(runs: Sequence[ReportData], among: str) -> str:
    domain = common_domains(runs)[0]
    shown = main_figure(runs, domain)
    if shown is None:
        return f"Students of {len(experiments(runs))} experiments, evaluated on {domain}."
    rows = seed_rows(runs, shown)
    target = task_labels(runs[0].results).target
    best = (min if "loss" in shown.name else max)(rows, key=lambda each: each[1].middle)
    kept = _bytes(runs[best[0]].results)
    what = shown.name[0].lower() + shown.name[1:]
    cached = "" if kept == units.NONE else f", at {kept} bytes per {target}"
    return f"Best on {domain}{among} is {best[1].name}: {what} {best[1].text}{cached}."


def summarise_comparison(runs: Sequence[ReportData]) -> str:
    """Return the tables as Markdown."""
    check_comparable(runs)
    parts = ["# Comparison of runs", plain(headline(runs)), *map(plain, reservations(runs))]
    for domain, group in joined(runs):
        parts += [f"## {plain(domain)}", table(compare_table(group, domain))]
    return "\n\n".join(parts) + "\n"


def comparison_json(runs: Sequence[ReportData]) -> dict[str, Any]:
    """Return the comparison as plain values: the text of every cell."""
    check_comparable(runs)
    shown = [compare_table(group, domain) for domain, group in joined(runs)]
    return {
        "schema_version": 1,
        "headline": headline(runs),
        "not_comparable": reservations(runs),
        "tables": [table_json(each) for each in shown],
        "settings": table_json(differences_table(runs)),
        "provenance": table_json(provenance_table(runs)),
    }


def differences_table(runs: Sequence[ReportData]) -> Table:
    """Return the settings that are not the same in all runs, a column a run."""
    trees = [
        {key: value for key, value in run.config.items() if key not in ("name", "output")}
        for run in runs
    ]
    rows = [[path, *map(_setting, values)] for path, values in _differing("", trees)]
    return Table("Settings that differ", ["Setting", *labels(runs)], rows)


def _differing(path: str, trees: Sequence[Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield dotted paths whose values differ, as deep as all trees have them."""
    if all(isinstance(tree, dict) for tree in trees):
        for key in dict.fromkeys(key for tree in trees for key in tree):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differing(inner, [tree.get(key, _ABSENT) for tree in trees])
    elif any(tree != trees[0] for tree in trees):
        yield path, trees


def _setting(value: Any) -> str:
    if value is _ABSENT:
        return units.NONE
    return value if isinstance(value, str) else json.dumps(value, default=str)


def provenance_table(runs: Sequence[ReportData]) -> Table:
    """Return where each run's figures come from."""
    rows = [
        [
            label,
            facts.created(run.results),
            run.results["config_fingerprint"],
            str(run.results["hardware"].get("cpu", units.NONE)),
            run.results["versions"].get("kdscale", units.NONE),
            run.results["output"],
        ]
        for label, run in zip(labels(runs), runs, strict=True)
    ]
    header = ["Run", "Created", "Config fingerprint", "CPU", "kdscale", "Output"]
    return Table("Provenance", header, rows)


def labels(runs: Sequence[ReportData]) -> list[str]:
    """Return a name for each run, with its seed and place where names are the same."""
    names = [run.results["run"] for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.results['run']}, seed {run.results['seed']}" for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for place, name in enumerate(names, 1)]
    return names


def main_figure(runs: Sequence[ReportData], domain: str) -> Figure | None:
    """Return the figure that decides: F1, else the gap recovered, else the loss."""
    found = {each.name: each for each in figures(runs, domain)}
    names = ("Student's F1", "Gap recovered", "Student's loss", "Student's loss, bits/byte")
    return next((found[name] for name in names if name in found), None)


def seed_rows(runs: Sequence[ReportData], shown: Figure) -> list[tuple[int, Dots]]:
    """Return the first place and the values of each experiment that has any."""
    rows = []
    names = labels(runs)
    for group in experiments(runs):
        values = [shown.values[place] for place in group]
        known = tuple(v for v in values if v is not None and math.isfinite(v))
        if not known:
            continue
        several = len(known) > 1
        middle, half = t_interval(known) if several else (known[0], 0.0)
        name = runs[group[0]].results["run"] if len(group) > 1 else names[group[0]]
        interval = (middle - half, middle + half) if several else None
        text = _mean_text(shown, group) if several else shown.text(middle)
        rows.append((group[0], Dots(name, known, middle, interval, text)))
    return rows


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
