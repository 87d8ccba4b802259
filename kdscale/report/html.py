"""The page: one self-contained HTML file, headline first, provenance last.

A section with nothing to show is left out; what is missing and matters (metrics, control) is said
in words.
"""

from kdscale.evaluate.results import Results
from kdscale.report import facts, units
from kdscale.report.charts import (
    Gap,
    Series,
    bar_chart,
    gap_chart,
    line_chart,
    reliability_chart,
    smooth,
)
from kdscale.report.layout import (
    facts_table,
    figure,
    figures_table,
    page,
    pair,
    section,
    texts_table,
)
from kdscale.report.load import Run
from kdscale.report.markup import Markup, tag
from kdscale.report.words import classifies, words_of

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
    return page(title, _header(results), tag("main", *sections), footer)


def _header(results: Results) -> Markup:
    return tag(
        "header",
        tag("p", f"Distillation report · {facts.created(results)}", class_="eyebrow"),
        tag("h1", results["run"]),
        tag("p", facts.headline(results), class_="lead"),
        tag("ul", *_tiles(results), class_="tiles"),
    )


def _tiles(results: Results) -> list[Markup]:
    """The few figures that decide whether to read on; those that exist."""
    tiles = []
    domain = facts.main_domain(results) or ""
    ratio, gap = facts.times_smaller(results), facts.main_gap(results)
    if ratio is not None:
        teacher, student = (results["models"][m]["parameters"] for m in ("teacher", "student"))
        sizes = f"{units.count(teacher)} to {units.count(student)} parameters"
        tiles.append(_tile(f"{ratio:.1f}×", f"smaller: {sizes}"))
    speed = facts.times_faster(results)
    if speed is not None and "speed" in results:
        device = results["speed"]["device"]
        tiles.append(_tile(f"{speed:.1f}×", f"as many tokens a second, {device}"))
    if gap is not None:
        tiles.append(_tile(units.percent(gap), f"of the loss gap recovered, {domain}"))
    if results["cache"] is not None:
        kept = units.number(results["cache"]["bytes_per_token"], 1)
        target = words_of(results).target
        tiles.append(_tile(f"{kept} B", f"a {target} keeps what the teacher knows"))
    student_score = facts.score(results, "student", domain)
    if student_score and "f1_macro" in student_score:
        tiles.append(_tile(units.percent(student_score["f1_macro"]), f"macro F1, {domain}"))
    elif student_score and "agreement_top1" in student_score:
        agreement = units.percent(student_score["agreement_top1"])
        tiles.append(_tile(agreement, f"top-1 agreement with the teacher, {domain}"))
    return tiles


def _tile(figure: str, meaning: str) -> Markup:
    return tag("li", tag("strong", figure), tag("span", meaning))


def _quality(results: Results) -> Markup | None:
    gaps = []
    for domain, recovered in results["gap_recovered"].items():
        scores = [facts.score(results, model, domain) for model in facts.MODELS]
        if recovered is not None and all(scores):
            teacher, student, control = (s["loss"] for s in scores if s)
            gaps.append(Gap(domain, teacher, student, control, recovered))
    reasons = dict.fromkeys(
        facts.no_gap_reason(results, domain)
        for domain, recovered in results["gap_recovered"].items()
        if recovered is None
    )
    tables = [
        figures_table(facts.quality_table(results, domain)) for domain in facts.domains(results)
    ]
    if classifies(results):
        found = (
            facts.confusion_table(results, model, domain)
            for domain in facts.domains(results)
            for model in facts.models(results)
        )
        tables += [figures_table(each) for each in found if each is not None]
    target = words_of(results).target
    caption = (
        f"Nats a {target}, from the control (left) to the teacher (right): the filled part is what "
        "distillation recovered."
    )
    return section(
        "Quality",
        figure("Loss", caption, gap_chart("gap", gaps)),
        *(tag("p", reason, class_="note") for reason in reasons),
        *tables,
        tag("p", _legend(results), class_="note"),
    )


def _legend(results: Results) -> str:
    """What the columns of the quality tables mean."""
    target = words_of(results).target
    of_classes = (
        "F1, precision and recall are means over the classes; F1 with its 95 % interval over "
        "documents drawn again. MCC: Matthews correlation. AUROC: one class against the others, "
        "mean over the classes. "
    )
    return (
        f"{of_classes if classifies(results) else ''}Loss in nats a {target}. ECE: expected "
        "calibration error over 15 equal-width bins; scaled: with logits divided by the "
        "temperature T that makes the validation labels likeliest. Agreement: share of targets "
        f"where the model's top-1 choice is the teacher's. KL: from the teacher to the model, nats "
        f"a {target}. The control is the student trained on the labels alone, with the same "
        "steps, order and seed."
    )


def _speed(results: Results) -> Markup | None:
    table = facts.model_speed_table(results)
    return None if table is None else section("Speed", figures_table(table))


def _samples(results: Results) -> Markup | None:
    tables = facts.sample_tables(results)
    note = "Beginnings of held-out documents, how these go on, and what the models write."
    return section("Samples", *map(texts_table, tables), note=note)


def _harness(results: Results) -> Markup | None:
    table = facts.harness_table(results)
    if not table.rows:
        return None
    return section("lm-eval", figures_table(table))


def _training(run: Run) -> Markup | None:
    if not run.metrics:
        return section("Training", tag("p", "No metrics were recorded.", class_="note"))
    unit, late = "nats a token", 0.2
    teacher = [
        Series("train", "teacher", smooth(run.series("teacher", "train/loss")), "faint"),
        Series("validation", "teacher", run.series("teacher", "validation/loss")),
    ]
    kl = [Series("train", "student", smooth(run.series("distill", "train/kl")), "plain")]
    caption = (
        "Cross-entropy on the labels. Markers are validation passes, which may cover fewer rows "
        "than the evaluation; faint lines are the training batches, a moving mean. The vertical "
        "axes leave out the fall over the first fifth of the steps."
    )
    title, of_kd, of_teacher = "Student and control", "KL to the teacher", "Teacher"
    return section(
        "Training",
        figure(title, caption, line_chart("loss", title, _loss_series(run), unit, skip_share=late)),
        pair(
            [
                figure(
                    of_kd,
                    "The student's in training, estimated from the cache; a moving mean.",
                    line_chart("kd", of_kd, kl, unit, width=NARROW, skip_share=late),
                ),
                figure(
                    of_teacher,
                    "Its own training, cross-entropy on the labels.",
                    line_chart("teacher", of_teacher, teacher, unit, width=NARROW, skip_share=late),
                ),
            ]
        ),
    )


def _loss_series(run: Run) -> list[Series]:
    """Student and control, training and validation, and the teacher as a level to aim at."""
    series = []
    for stage, role in (("distill", "student"), ("control", "control")):
        # Where it is logged: the student's own `train/loss` mixes in the distillation loss.
        key = "train/ce_loss" if run.series(stage, "train/ce_loss") else "train/loss"
        series.append(Series(f"{role}, train", role, smooth(run.series(stage, key)), "faint"))
        series.append(Series(f"{role}, validation", role, run.series(stage, "validation/loss")))
    teacher = facts.score(run.results, "teacher", "validation")
    if teacher:
        level = [(0.0, teacher["loss"])]
        series.append(Series("teacher, evaluated", "teacher", level, "level"))
    return series


def _calibration(results: Results) -> Markup | None:
    charts = []
    for index, domain in enumerate(facts.domains(results)):
        found = {model: facts.score(results, model, domain) for model in facts.MODELS}
        scores = {model: metrics for model, metrics in found.items() if metrics is not None}
        chart = reliability_chart(f"calibration-{index}", domain, scores)
        charts.append(figure(domain, "Confidence against accuracy.", chart))
    note = (
        "On the dotted diagonal a model is right as often as it is confident; below it, it is "
        "over-confident. Markers grow with the number of positions in a bin."
    )
    return section("Calibration", pair(charts), note=note)


def _curriculum(run: Run) -> Markup | None:
    competence = run.series("distill", "curriculum/competence")
    seen = run.series("distill", "curriculum/unique_seen_share")
    hardness = run.series("distill", "curriculum/mean_difficulty")
    pool = [value for _, value in run.series("distill", "curriculum/pool_size")]
    growth = f" The pool grew from {pool[0]:,.0f} to {pool[-1]:,.0f} rows." if pool else ""
    measure = run.setting("distill.curriculum.difficulty")
    # Several measures as one are a mapping, and what they give has no unit.
    difficulty = DIFFICULTY.get(measure, "") if isinstance(measure, str) else "fused ranks"
    of_rows, of_difficulty = "Share of the rows", "Mean difficulty"
    shares = line_chart(
        "pool",
        of_rows,
        [
            Series("in the pool", "student", competence, "plain"),
            Series("seen", "second", seen, "plain"),
        ],
        "",
        width=NARROW,
        y_range=(0, 1),
        y_format=units.whole_percent,
    )
    means = line_chart(
        "difficulty",
        of_difficulty,
        [Series("mean of a batch", "student", smooth(hardness), "plain")],
        difficulty,
        width=NARROW,
    )
    return section(
        "Curriculum",
        pair(
            [
                figure(of_rows, f"What the student may draw from, and has met.{growth}", shares),
                figure(of_difficulty, "Of the rows in a batch, a moving mean.", means),
            ]
        ),
    )


def _cache(results: Results) -> Markup | None:
    cache, target = results["cache"], words_of(results).target
    return (
        None if cache is None else section("Cache", facts_table(facts.cache_table(cache, target)))
    )


def _time(run: Run) -> Markup | None:
    seconds = run.results["seconds"]
    speed = facts.speed_table(run)
    chart = bar_chart("seconds", "Wall time of the stages", seconds, units.duration)
    total = units.duration(sum(seconds.values()))
    return section(
        "Time",
        figure("Stages", f"Wall time, {total} in all.", chart),
        figures_table(speed) if speed.rows else None,
    )


def _provenance(run: Run) -> Markup | None:
    config = None
    if run.config_text:
        config = tag(
            "details", tag("summary", "Resolved config"), tag("pre", tag("code", run.config_text))
        )
    return section("Provenance", facts_table(facts.provenance_table(run.results)), config)
