"""Several runs on one page: the best first, then every figure, charts, and how the runs differ."""

from collections.abc import Sequence

from kdscale.report import formatting as units
from kdscale.report.charts import STEP, Series, data_table, line_chart
from kdscale.report.compare import (
    check_comparable,
    common_domains,
    compare_table,
    differences_table,
    experiments,
    headline,
    labels,
    main_figure,
    provenance_table,
    seed_rows,
)
from kdscale.report.dot_plot import dot_chart
from kdscale.report.labels import words_of
from kdscale.report.layout import contents, figure, figures_table, page, section, text_table
from kdscale.report.load import Run
from kdscale.report.markup import Markup, tag

ROLES = ("student", "baseline", "teacher", "second", "third")  # styles of lines, not models here


def render_comparison(runs: Sequence[Run]) -> str:
    """The page of `runs`. KdscaleError where they cannot be compared."""
    check_comparable(runs)
    domains = common_domains(runs)
    title = "Comparison of runs"
    note = (
        "An interval behind a mean is that of the mean over seeds, 95 %, by Student's t. The gap "
        "recovered is the student's way from the baseline to the teacher, in loss."
    )
    dots = [_dots(runs, domain, f"dots-{i}") for i, domain in enumerate(domains)]
    sizes = [_sizes(runs, domain, f"sizes-{i}") for i, domain in enumerate(domains)]
    differences = differences_table(runs)
    sections = (
        section("Figures", *(figures_table(compare_table(runs, d)) for d in domains), note=note),
        section("Quality", *dots),
        section("Size and quality", *sizes),
        section("Training", _training(runs)),
        section(
            "Configuration and provenance",
            text_table(differences) if differences.rows else None,
            text_table(provenance_table(runs)),
        ),
    )
    header = tag(
        "header",
        tag("p", _counted(runs), class_="eyebrow"),
        tag("h1", title),
        tag("p", headline(runs), class_="lead"),
    )
    footer = tag("footer", tag("p", "Written by kdscale from the runs' results.json."))
    main = tag("main", *sections)
    return page(f"{title} · kdscale", header, contents(sections), main, footer)


def _counted(runs: Sequence[Run]) -> str:
    groups = len(experiments(runs))
    return f"{len(runs)} runs" + (f" of {groups} experiments" if groups < len(runs) else "")


def _dots(runs: Sequence[Run], domain: str, identifier: str) -> Markup | None:
    """The main figure of every experiment, beside those of the others."""
    shown = main_figure(runs, domain)
    if shown is None:
        return None
    rows = [row for _, row in seed_rows(runs, shown)]
    several = any(row.interval for row in rows)
    seeds = ": small circles are seeds, the large one their mean with its 95 % interval"
    caption = f"{shown.name} of each experiment{seeds if several else ''}."
    form = units.whole_percent if shown.is_share else None
    chart = dot_chart(identifier, f"{shown.name}, {domain}", rows, shown.name.lower(), form)
    return figure(domain, caption, chart)


def _sizes(runs: Sequence[Run], domain: str, identifier: str) -> Markup | None:
    """The main figure over the bytes that a target takes, where these differ."""
    shown = main_figure(runs, domain)
    if shown is None:
        return None
    points = []
    for place, row in seed_rows(runs, shown):
        cache = runs[place].results["cache"]
        if cache is not None:
            points.append((float(cache["bytes_per_token"]), row.middle))
    if len({size for size, _ in points}) < 2:
        return None
    target = words_of(runs[0].results).target
    series = [Series(shown.name, "student", sorted(points))]
    over = f"bytes a {target}"
    chart = line_chart(
        identifier,
        f"{shown.name}, {domain}",
        series,
        "",
        x_label=over,
        y_format=units.whole_percent if shown.is_share else None,
    )
    caption = f"{shown.name} over the bytes that a {target} takes."
    return figure(domain, caption, chart, data_table(caption.rstrip("."), series, over))


def _training(runs: Sequence[Run]) -> Markup | None:
    """The students' validation losses, a line an experiment."""
    groups = experiments(runs)[: len(ROLES)]
    names = labels(runs)
    series = [
        Series(
            runs[places[0]].results["run"] if len(places) > 1 else names[places[0]],
            role,
            runs[places[0]].series("distill", "validation/loss"),
        )
        for places, role in zip(groups, ROLES, strict=False)
    ]
    left_out = len(experiments(runs)) - len(groups)
    caption = "Loss of the students on the validation rows, of each experiment's first run" + (
        f"; {left_out} more are not drawn." if left_out else "."
    )
    title, unit = "Students in training", f"nats a {words_of(runs[0].results).target}"
    chart = line_chart("students", title, series, unit, skip_share=0.2)
    return figure(title, caption, chart, data_table("the students' losses", series, STEP))
