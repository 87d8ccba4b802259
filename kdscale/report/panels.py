"""The page's charts and tables as panels for W&B: the same lines, the same cells."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count

from kdscale.evaluate.schema import Results
from kdscale.report import curves, facts, tables
from kdscale.report.cache_quality import audit_table
from kdscale.report.costs import cost_table
from kdscale.report.curves import STEP, Series, thin
from kdscale.report.load import ReportData
from kdscale.report.tables import Table
from kdscale.report.training import training_table
from kdscale.tracking.metrics import BY_KEY
from kdscale.tracking.panels import Cell, Panel


def panels(run: ReportData) -> list[Panel]:
    """Return the panels in the page's order, each under its own key, without empty ones."""
    results, unit = run.results, BY_KEY["train/loss"].unit
    domains = facts.domains(results)
    gaps: list[list[Cell]] = [
        [d, 100 * gap] for d, gap in results["gap_recovered"].items() if gap is not None
    ]
    seconds: list[list[Cell]] = [
        [stage, s] for stage, s in results["seconds"].items() if math.isfinite(s)
    ]
    confusions = (tables.confusion_table(results, "student", domain) for domain in domains)
    found = [
        Panel("quality", "gap-recovered", "bars", ("domain", "% of the loss gap"), gaps),
        *(_table("quality", table) for table in tables.result_tables(results)),
        *(_confusion(table) for table in confusions if table is not None),
        _lines("training", "student-and-baseline", curves.losses(run), unit),
        _lines("training", "kl-to-the-teacher", curves.divergence(run), unit),
        _lines("training", "teacher", curves.teacher_losses(run), unit),
        _lines("training", "learning-rate", curves.learning_rates(run), "learning rate"),
        _lines("training", "gradient-norm", curves.gradient_norms(run), "norm"),
        *([_table("training", end)] if (end := training_table(run)) else []),
        _lines("curriculum", "share-of-the-sequences", curves.shares_of_sequences(run), "share"),
        _lines("curriculum", "mean-difficulty", curves.difficulty(run), "difficulty"),
        *([_table("cache", tables.cache_table(results["cache"]))] if results["cache"] else []),
        *([_table("cache", audit)] if (audit := audit_table(results)) else []),
        *([_table("cost", cost)] if (cost := cost_table(results)) else []),
        Panel("speed", "stages", "bars", ("stage", "seconds"), seconds),
        _table("speed", tables.speed_table(run)),
        *(_calibration(results, domain) for domain in domains),
        _table("provenance", tables.provenance_table(results)),
    ]
    return _distinct([panel for panel in found if panel.rows])


def summary(run: ReportData) -> dict[str, float | int | str]:
    """Return the key figures as numbers, to sort and filter runs by."""
    results = run.results
    found: dict[str, float | int | str | None] = {
        "headline": facts.headline(results),
        "times_smaller": facts.times_smaller(results),
        "bytes_per_target": results["cache"]["bytes_per_token"] if results["cache"] else None,
        **{f"gap_recovered/{d}": gap for d, gap in results["gap_recovered"].items()},
        **{f"target_share/{name}": each["share"] for name, each in facts.aligned_sets(results)},
    }
    return {name: value for name, value in found.items() if value is not None}


def _distinct(found: Sequence[Panel]) -> list[Panel]:
    """Add numbers to repeated names, such as those of domains that differ in a space."""
    panels: dict[str, Panel] = {}
    for panel in found:
        names = chain([panel.name], (f"{panel.name}-{again}" for again in count(2)))
        new = next(p for p in (replace(panel, name=n) for n in names) if p.key not in panels)
        panels[new.key] = new
    return list(panels.values())


def _table(section: str, table: Table) -> Panel:
    rows: list[list[Cell]] = [list(row) for row in table.rows]
    name = table.name or _slug(table.caption)
    return Panel(section, name, "table", tuple(table.header), rows)


def _lines(section: str, name: str, series: Sequence[Series], unit: str) -> Panel:
    """Return lines; a level is a line from the first to the last step of the others."""
    drawn = [s for s in series if s.finite()]
    steps = [x for s in drawn if s.kind != "level" for x, _ in s.finite()]
    rows: list[list[Cell]] = []
    for each in drawn if steps else ():
        points = thin(each.finite())
        if each.kind == "level":
            points = [(x, points[0][1]) for x in (min(steps), max(steps))]
        rows += [[x, y, each.name] for x, y in points]
    return Panel(section, name, "lines", (STEP, unit, "line"), rows)


def _calibration(results: Results, domain: str) -> Panel:
    rows: list[list[Cell]] = []
    for model in facts.models(results):
        metrics = facts.score(results, model, domain)
        for each in metrics["calibration"] if metrics else ():
            if math.isfinite(each["confidence"]) and math.isfinite(each["accuracy"]):
                rows.append([each["confidence"], each["accuracy"], model])
    return Panel("calibration", _slug(domain), "lines", ("confidence", "accuracy", "line"), rows)


def _confusion(table: Table) -> Panel:
    names = table.header[1:]
    rows: list[list[Cell]] = [
        [row[0], predicted, int(times)]
        for row in table.rows
        for predicted, times in zip(names, row[1:], strict=True)
    ]
    columns = ("label", "prediction", "documents")
    return Panel("quality", _slug(table.caption), "confusion", columns, rows)


def _slug(caption: str) -> str:
    """Return a caption without its counts, fit for a key that all runs of an experiment share."""
    return re.sub(r"[^\w.-]+", "-", re.sub(r": [\d,]+ \w+$", "", caption)).strip("-").lower()
