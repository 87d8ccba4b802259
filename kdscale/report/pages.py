"""The HTML pages: Jinja templates filled with tables, sentences and charts.

templates/ holds what people may edit: order, captions and style. Everything that a template is
given is escaped unless it is Markup, so a run's name cannot become HTML.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdscale.evaluate.schema import Results
from kdscale.report import compare, curves, facts, tables
from kdscale.report import formatting as units
from kdscale.report.charts import (
    Gap,
    bar_chart,
    data_table,
    dot_chart,
    gap_chart,
    line_chart,
    reliability_chart,
)
from kdscale.report.compare import Figure
from kdscale.report.content import sections
from kdscale.report.curves import STEP, Series
from kdscale.report.facts import task_labels
from kdscale.report.load import ReportData
from kdscale.report.tables import Table
from kdscale.tracking.metrics import BY_KEY

_ROLES = ("student", "baseline", "teacher", "second", "third")  # styles of lines, not models here
_DIFFICULTY = {
    "entropy": "teacher entropy, nats per token",
    "nll": "teacher loss, nats per token",
    "length": "target tokens in a sequence",
    "rarity": "rarity of the tokens, nats per token",
    "gap": "student's loss above the teacher's, nats per token",
}


@dataclass(frozen=True)
class Chart:
    """A drawing, its title, and the data to unfold below it."""

    title: str
    svg: Markup
    data: Table | None = None


def render_page(template: str, context: Mapping[str, object]) -> str:
    """Fill `template` of the folder templates/."""
    # Sections that have something to show enter their titles here, for the list of contents.
    return _environment().get_template(template).render({"headings": [], **context})


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("kdscale.report"),
        autoescape=True,
        undefined=StrictUndefined,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["anchor"] = lambda title: re.sub(r"\W+", "-", title.lower()).strip("-")
    return environment


def render_report(run: ReportData) -> str:
    """Render the page of one run."""
    results = run.results
    pool = [value for _, value in run.series("distill", "curriculum/pool_size")]
    context = {
        "run": run,
        "results": results,
        "facts": facts,
        "content": sections(run),
        "confusions": _confusions(results),
        "total_time": units.duration(sum(results["seconds"].values())),
        "pool": [f"{size:,.0f}" for size in (pool[0], pool[-1])] if pool else [],
        "gap": Chart(
            "Loss, from baseline to teacher",
            gap_chart("gap", _gaps(results), facts.loss_unit(results)),
        ),
        "gap_unit": facts.loss_unit(results),
        "curves": _curves(run),
        "calibration": _calibration(results),
        "stages": Chart(
            "Stages",
            bar_chart("seconds", "Wall time of the stages", results["seconds"], units.duration),
        ),
    }
    return render_page("report.html.j2", context)


def _curves(run: ReportData) -> dict[str, Chart]:
    """Return the charts over steps, by their ids."""
    nats = BY_KEY["train/loss"].unit
    measure = run.setting("distill.curriculum.difficulty")
    # Several measures as one are a mapping, and their ranks have no unit.
    difficulty = _DIFFICULTY.get(measure, "") if isinstance(measure, str) else "fused ranks"
    late: dict[str, Any] = {"skip_share": 0.2}
    narrow: dict[str, Any] = {"width": 400}
    share: dict[str, Any] = {"y_range": (0, 1), "shares": True}
    charts = (
        ("loss", "Student and baseline", curves.losses(run), nats, late),
        ("kd", "KL to the teacher", curves.divergence(run), nats, narrow | late),
        ("teacher", "Teacher", curves.teacher_losses(run), nats, narrow | late),
        ("rate", "Learning rate", curves.learning_rates(run), "", narrow),
        ("norm", "Gradient norm", curves.gradient_norms(run), "", narrow | late),
        ("pool", "Share of the sequences", curves.shares_of_sequences(run), "", narrow | share),
        ("difficulty", "Mean difficulty", curves.difficulty(run), difficulty, narrow),
    )
    return {
        name: Chart(
            title, line_chart(name, title, series, unit, **look), data_table(title, series, STEP)
        )
        for name, title, series, unit, look in charts
    }


def _gaps(results: Results) -> list[Gap]:
    """Return the domains that have a gap, and the student's place in it."""
    gaps, intervals = [], results.get("gap_intervals", {})
    for domain, recovered in results["gap_recovered"].items():
        losses = [facts.compared_loss(results, model, domain) for model in facts.MODELS]
        if recovered is not None and None not in losses:
            teacher, student, baseline = (each for each in losses if each is not None)
            bounds = intervals.get(domain)
            interval = (bounds[0], bounds[1]) if bounds else None
            gaps.append(Gap(domain, teacher, student, baseline, recovered, interval))
    return gaps


def _confusions(results: Results) -> list[tuple[str, list[Table]]]:
    """Return each domain's confusion tables, and how many fit side by side, as a CSS class."""
    names = results.get("classes", [])
    # In characters: a column of names, and one for each name.
    width = max(map(len, names), default=0) + sum(len(name) + 2 for name in names)
    layout = "trio" if width <= 32 else "pair" if width <= 64 else "stack"
    found = [
        [tables.confusion_table(results, model, domain) for model in facts.models(results)]
        for domain in facts.domains(results)
    ]
    return [(layout, [table for table in row if table is not None]) for row in found]


def _calibration(results: Results) -> list[Chart]:
    charts = []
    for index, domain in enumerate(facts.domains(results)):
        found = {model: facts.score(results, model, domain) for model in facts.MODELS}
        scores = {model: metrics for model, metrics in found.items() if metrics is not None}
        chart = reliability_chart(f"calibration-{index}", domain, scores)
        charts.append(Chart(domain, chart, tables.calibration_table(results, domain)))
    return charts


def render_comparison(runs: Sequence[ReportData]) -> str:
    """Render the page of several runs; KdscaleError where they cannot be compared."""
    compare.check_comparable(runs)
    groups, shown = len(compare.experiments(runs)), compare.joined(runs)
    judged = [(domain, group, compare.main_figure(group, domain)) for domain, group in shown]
    counted = f" of {groups} experiment{'s' * (groups > 1)}" if groups < len(runs) else ""
    # Lines of losses are joined as the figures of the first set are.
    drawn = shown[0][1]
    context = {
        "counted": f"{len(runs)} runs{counted}",
        "headline": compare.headline(runs),
        "reservations": compare.reservations(runs),
        "figures_of": [compare.compare_table(group, domain) for domain, group in shown],
        "domains": [
            (
                figure.name if figure else "",
                _dots(group, domain, figure, f"dots-{i}"),
                _sizes(group, domain, figure, f"sizes-{i}"),
            )
            for i, (domain, group, figure) in enumerate(judged)
        ],
        "training": _students(drawn),
        "left_out": max(0, len(compare.experiments(drawn)) - len(_ROLES)),
        "differences": compare.differences_table(runs),
        "provenance": compare.provenance_table(runs),
        "target": task_labels(runs[0].results).target,
    }
    return render_page("comparison.html.j2", context)


def _dots(
    runs: Sequence[ReportData], domain: str, shown: Figure | None, identifier: str
) -> tuple[Chart, bool]:
    """Return each experiment's figure beside the others', and whether there are intervals."""
    rows = [row for _, row in compare.seed_rows(runs, shown)] if shown else []
    if shown is None:
        return Chart(domain, Markup("")), False
    title = f"{shown.name}, {domain}"
    chart = dot_chart(identifier, title, rows, shown.name.lower(), shown.is_share)
    return Chart(domain, chart), any(row.interval for row in rows)


def _sizes(runs: Sequence[ReportData], domain: str, shown: Figure | None, identifier: str) -> Chart:
    """Return each experiment's figure over the bytes of a target, where these differ."""
    points = []
    for place, row in compare.seed_rows(runs, shown) if shown else ():
        found = runs[place].results["cache"]
        if found is not None:
            points.append((float(found["bytes_per_token"]), row.middle))
    if shown is None or len({size for size, _ in points}) < 2:
        return Chart(domain, Markup(""))
    target = task_labels(runs[0].results).target
    series, over = [Series(shown.name, "student", sorted(points))], f"bytes per {target}"
    title = f"{shown.name}, {domain}"
    chart = line_chart(identifier, title, series, "", x_label=over, shares=shown.is_share)
    words = f"{shown.name} over the bytes that a {target} takes"
    return Chart(domain, chart, data_table(words, series, over))


def _students(runs: Sequence[ReportData]) -> Chart:
    """Return the students' validation losses, a line an experiment."""
    groups, names = compare.experiments(runs), compare.labels(runs)
    series = [
        Series(
            runs[places[0]].results["run"] if len(places) > 1 else names[places[0]],
            role,
            runs[places[0]].series("distill", "validation/loss"),
        )
        for places, role in zip(groups, _ROLES, strict=False)
    ]
    title, unit = "Students in training", f"nats per {task_labels(runs[0].results).target}"
    chart = line_chart("students", title, series, unit, skip_share=0.2)
    return Chart(title, chart, data_table(title, series, STEP))
