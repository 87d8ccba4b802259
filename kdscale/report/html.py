"""The page: one self-contained HTML file, headline first, configuration and provenance last.

A section with nothing to show is left out; what is missing and matters (metrics, baseline) is said
in words.
"""

from kdscale.evaluate.results import Results
from kdscale.report import curves, facts, measured, scores
from kdscale.report import formatting as units
from kdscale.report.charts import (
    STEP,
    Gap,
    bar_chart,
    data_table,
    gap_chart,
    line_chart,
    reliability_chart,
)
from kdscale.report.labels import words_of
from kdscale.report.layout import (
    Section,
    contents,
    facts_table,
    figure,
    figures_table,
    page,
    pair,
    section,
    shares_table,
    texts_table,
    tiles,
    trio,
)
from kdscale.report.load import Run
from kdscale.report.markup import Markup, tag

NARROW = 400  # width of a chart that shares its row
DIFFICULTY = {
    "entropy": "teacher entropy, nats a token",
    "nll": "teacher loss, nats a token",
    "length": "target tokens in a row",
    "rarity": "rarity of the tokens, nats a token",
    "gap": "student's loss above the teacher's, nats a token",
}


def render_html(run: Run) -> str:
    """The whole page of `run`."""
    results = run.results
    sections = (
        _quality(results),
        _speed(results),
        _harness(results),
        _samples(results),
        _training(run),
        _calibration(results),
        _curriculum(run),
        _cache(results),
        _time(run),
        _provenance(run),
    )
    version = results["versions"].get("kdscale", "")
    footer = tag("footer", tag("p", f"Written by kdscale {version} from results.json."))
    title = f"{results['run']} · kdscale report"
    return page(title, _header(results), contents(sections), tag("main", *sections), footer)


def _header(results: Results) -> Markup:
    return tag(
        "header",
        tag("p", f"Distillation report · {facts.created(results)}", class_="eyebrow"),
        tag("h1", results["run"]),
        tag("p", facts.headline(results), class_="lead"),
        tiles(facts.key_figures(results)),
    )


def _quality(results: Results) -> Section | None:
    reasons = dict.fromkeys(
        facts.no_gap_reason(results, domain)
        for domain, recovered in results["gap_recovered"].items()
        if recovered is None
    )
    target = words_of(results).target
    caption = (
        f"Nats a {target}, from the baseline (left) to the teacher (right): the filled part is "
        "what distillation recovered, the bracket below the student its 95 % interval."
    )
    chart = gap_chart("gap", _gaps(results))
    return section(
        "Quality",
        figure("Loss, from baseline to teacher", caption, chart),
        *(tag("p", reason, class_="note") for reason in reasons),
        *map(figures_table, scores.score_tables(results)),
        tag("p", scores.legend(results), class_="note"),
        *_confusions(results),
    )


def _gaps(results: Results) -> list[Gap]:
    """The domains on which there is a gap, and the student's place in it."""
    gaps, intervals = [], results.get("gap_intervals", {})
    for domain, recovered in results["gap_recovered"].items():
        scores = [facts.score(results, model, domain) for model in facts.MODELS]
        if recovered is not None and all(scores):
            teacher, student, baseline = (s["loss"] for s in scores if s)
            bounds = intervals.get(domain)
            interval = (bounds[0], bounds[1]) if bounds else None
            gaps.append(Gap(domain, teacher, student, baseline, recovered, interval))
    return gaps


def _confusions(results: Results) -> list[Markup | None]:
    """What each model takes the classes for, model beside model where there is room."""
    names = results.get("classes", [])
    # In characters: a column of names, and one for each name.
    width = max(map(len, names), default=0) + sum(len(name) + 2 for name in names)
    rows: list[Markup | None] = []
    for domain in facts.domains(results):
        found = (facts.confusion_table(results, m, domain) for m in facts.models(results))
        tables = [shares_table(each) for each in found if each is not None]
        rows += [trio(tables)] if width <= 32 else [pair(tables)] if width <= 64 else tables
    return rows


def _speed(results: Results) -> Section | None:
    table = measured.model_speed_table(results)
    return None if table is None else section("Speed", figures_table(table))


def _samples(results: Results) -> Section | None:
    tables = measured.sample_tables(results)
    note = "Beginnings of held-out documents, how these go on, and what the models write."
    return section("Samples", *map(texts_table, tables), note=note)


def _harness(results: Results) -> Section | None:
    table = measured.harness_table(results)
    if not table.rows:
        return None
    return section("lm-eval", figures_table(table))


def _training(run: Run) -> Section | None:
    if not run.metrics:
        return section("Training", tag("p", "No metrics were recorded.", class_="note"))
    unit, late = "nats a token", 0.2
    caption = (
        "Cross-entropy on the labels. Markers are validation passes, which may cover fewer rows "
        "than the evaluation; faint lines are the training batches, a moving mean. The vertical "
        "axes leave out the fall over the first fifth of the steps."
    )
    title, of_kd, of_teacher = "Student and baseline", "KL to the teacher", "Teacher"
    losses, kl, teacher = curves.losses(run), curves.divergence(run), curves.teacher_losses(run)
    return section(
        "Training",
        figure(
            title,
            caption,
            line_chart("loss", title, losses, unit, skip_share=late),
            data_table("the losses of student and baseline", losses, STEP),
        ),
        pair(
            [
                figure(
                    of_kd,
                    "The student's in training, estimated from the cache; a moving mean.",
                    line_chart("kd", of_kd, kl, unit, width=NARROW, skip_share=late),
                    data_table("the KL to the teacher", kl, STEP),
                ),
                figure(
                    of_teacher,
                    "Its own training, cross-entropy on the labels.",
                    line_chart("teacher", of_teacher, teacher, unit, width=NARROW, skip_share=late),
                    data_table("the teacher's losses", teacher, STEP),
                ),
            ]
        ),
    )


def _calibration(results: Results) -> Section | None:
    charts = []
    for index, domain in enumerate(facts.domains(results)):
        found = {model: facts.score(results, model, domain) for model in facts.MODELS}
        scores = {model: metrics for model, metrics in found.items() if metrics is not None}
        chart = reliability_chart(f"calibration-{index}", domain, scores)
        data = facts.calibration_table(results, domain)
        charts.append(figure(domain, "Confidence against accuracy.", chart, data))
    note = (
        "On the dotted diagonal a model is right as often as it is confident; below it, it is "
        "over-confident. Markers grow with the number of positions in a bin."
    )
    return section("Calibration", pair(charts), note=note)


def _curriculum(run: Run) -> Section | None:
    pool = [value for _, value in run.series("distill", "curriculum/pool_size")]
    growth = f" The pool grew from {pool[0]:,.0f} to {pool[-1]:,.0f} rows." if pool else ""
    measure = run.setting("distill.curriculum.difficulty")
    # Several measures as one are a mapping, and what they give has no unit.
    difficulty = DIFFICULTY.get(measure, "") if isinstance(measure, str) else "fused ranks"
    of_rows, of_difficulty = "Share of the rows", "Mean difficulty"
    of_pool, of_batches = curves.shares_of_rows(run), curves.difficulty(run)
    shares = line_chart(
        "pool",
        of_rows,
        of_pool,
        "",
        width=NARROW,
        y_range=(0, 1),
        y_format=units.whole_percent,
    )
    means = line_chart(
        "difficulty",
        of_difficulty,
        of_batches,
        difficulty,
        width=NARROW,
    )
    return section(
        "Curriculum",
        pair(
            [
                figure(
                    of_rows,
                    f"What the student may draw from, and has met.{growth}",
                    shares,
                    data_table("the share of the rows", of_pool, STEP),
                ),
                figure(
                    of_difficulty,
                    "Of the rows in a batch, a moving mean.",
                    means,
                    data_table("the mean difficulty", of_batches, STEP),
                ),
            ]
        ),
    )


def _cache(results: Results) -> Section | None:
    cache, target = results["cache"], words_of(results).target
    return (
        None if cache is None else section("Cache", facts_table(facts.cache_table(cache, target)))
    )


def _time(run: Run) -> Section | None:
    seconds = run.results["seconds"]
    speed = facts.speed_table(run)
    chart = bar_chart("seconds", "Wall time of the stages", seconds, units.duration)
    total = units.duration(sum(seconds.values()))
    return section(
        "Time",
        figure("Stages", f"Wall time, {total} in all.", chart, facts.stage_table(run.results)),
        figures_table(speed) if speed.rows else None,
    )


def _provenance(run: Run) -> Section | None:
    config = None
    if run.config_text:
        config = tag(
            "details", tag("summary", "Resolved config"), tag("pre", tag("code", run.config_text))
        )
    provenance = facts_table(facts.provenance_table(run.results))
    return section("Configuration and provenance", provenance, config)
