"""Numbers and sentences of a run's results, shared by page, summary and model card."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdscale.evaluate.results import common_loss
from kdscale.evaluate.schema import AlignedSet, DomainMetrics, Results
from kdscale.report import formatting as units

MODELS = ("teacher", "student", "baseline")
BEFORE = "before"
"""The row of a loaded student as it was before training."""

HOME = "validation"
"""The evaluation set that comes from the training corpus."""


@dataclass(frozen=True)
class TaskLabels:
    """Display labels of one task."""

    model: str
    target: str  # what a loss is per, and what the cache stores a distribution for
    auto_class: str  # of transformers
    pipeline_tag: str  # of the hub


_LABELS = {
    "causal-lm": TaskLabels(
        "causal language model", "token", "AutoModelForCausalLM", "text-generation"
    ),
    "masked-lm": TaskLabels(
        "masked language model", "masked token", "AutoModelForMaskedLM", "fill-mask"
    ),
    "sequence-classification": TaskLabels(
        "text classifier", "document", "AutoModelForSequenceClassification", "text-classification"
    ),
}


def task_labels(results: Results) -> TaskLabels:
    """Return the display labels of the task of `results`."""
    return _LABELS[results["task"]]


def classifies(results: Results) -> bool:
    """Return whether the models are classifiers."""
    return results["task"] == "sequence-classification"


def compared_loss(results: Results, model: str, domain: str) -> float | None:
    """Return the loss of `model` on `domain` in the unit in which models are compared."""
    found = score(results, model, domain)
    return None if found is None else found[common_loss(results.get("alignment"))]


def loss_unit(results: Results) -> str:
    """Return the unit of `compared_loss`."""
    if results.get("alignment") is not None:
        return "bits per byte"
    return f"nats per {task_labels(results).target}"


def aligned_sets(results: Results) -> list[tuple[str, AlignedSet]]:
    """Return the sets of sequences of a student with its own tokenizer, by name; else none."""
    return list(results["alignment"]["sets"].items()) if "alignment" in results else []


def created(results: Results) -> str:
    """Return the time of creation as a person reads it."""
    return results["created"].replace("T", " ").replace("+00:00", " UTC")


def models(results: Results) -> list[str]:
    """Return the evaluated models: teacher first, models from outside the run last."""
    return in_order(results["models"])


def in_order(names: Collection[str]) -> list[str]:
    """Return names of models in the order of all tables."""
    own = (*MODELS, BEFORE)
    return [n for n in own if n in names] + [n for n in names if n not in own]


def domains(results: Results) -> list[str]:
    """Return the evaluation domains, `validation` first."""
    names = dict.fromkeys(name for m in models(results) for name in results["models"][m]["domains"])
    return sorted(names, key=lambda name: name != HOME)


def main_domain(results: Results) -> str | None:
    """Return the domain of headlines: `validation` where it exists."""
    return next(iter(domains(results)), None)


def score(results: Results, model: str, domain: str) -> DomainMetrics | None:
    """Return the metrics of `model` on `domain`, or None."""
    if model not in results["models"]:
        return None
    return results["models"][model]["domains"].get(domain)


def times_smaller(results: Results) -> float | None:
    """Return the teacher's parameters over the student's."""
    teacher, student = results["models"].get("teacher"), results["models"].get("student")
    if not teacher or not student or not student["parameters"]:
        return None
    return teacher["parameters"] / student["parameters"]


def times_faster(results: Results) -> tuple[float, Sequence[float]] | None:
    """Return the student's tokens per second over the teacher's, with the 95 % interval.

    Of batched forwards. None where too little was measured for an interval.
    """
    speed = results["speed"]["models"].get("student") if "speed" in results else None
    times, interval = (
        (speed.get("times_teacher"), speed.get("times_teacher_interval")) if speed else (None, None)
    )
    return None if times is None or interval is None else (times, interval)


def _faster(results: Results) -> str:
    """Return ` and 5.9 (5.2 to 6.4) times faster`, or "" where the interval includes 1."""
    found = times_faster(results)
    if found is None:
        return ""
    times, (low, high) = found
    if low > 1:
        return f" and {units.times(times, low, high)} times faster"
    if high < 1:
        return f" and {units.times(1 / times, 1 / high, 1 / low)} times slower"
    return ""


def main_gap(results: Results) -> float | None:
    """Return the gap recovered on the main domain."""
    return results["gap_recovered"].get(main_domain(results) or "")


@dataclass(frozen=True)
class KeyFigure:
    """One large figure and what it measures."""

    value: str
    meaning: str


def key_figures(results: Results) -> list[KeyFigure]:
    """Return the figures for the tiles, as far as the run has them.

    Size, speed, gap recovered, stored bytes, and likeness to the teacher.
    """
    found = []
    domain = main_domain(results) or ""
    ratio, gap = times_smaller(results), main_gap(results)
    if ratio is not None:
        teacher, student = (results["models"][m]["parameters"] for m in ("teacher", "student"))
        sizes = f"{units.count(teacher)} to {units.count(student)} parameters"
        found.append(KeyFigure(f"{ratio:.1f}×", f"smaller: {sizes}"))
    speed = times_faster(results)
    if speed is not None and "speed" in results and not speed[1][0] <= 1 <= speed[1][1]:
        times, (low, high) = speed
        meaning = (
            f"as many tokens per second ({low:.1f} to {high:.1f}), {results['speed']['device']}"
        )
        found.append(KeyFigure(f"{times:.1f}×", meaning))
    if gap is not None:
        found.append(KeyFigure(units.percent(gap), f"of the loss gap recovered, {domain}"))
    if results["cache"] is not None:
        kept = units.number(results["cache"]["bytes_per_token"], 1)
        target = task_labels(results).target
        found.append(KeyFigure(f"{kept} B", f"stored per {target}: the teacher's distribution"))
    if (aligned := dict(aligned_sets(results)).get("train")) is not None:
        meaning = "of the student's own tokens have a target of the teacher's"
        found.append(KeyFigure(units.percent(aligned["share"]), meaning))
    student_score = score(results, "student", domain)
    if student_score and "f1_macro" in student_score:
        macro = units.percent(student_score["f1_macro"])
        found.append(KeyFigure(macro, f"macro F1 of the student, {domain}"))
    if student_score and "agreement_top1" in student_score:
        agreement = units.percent(student_score["agreement_top1"])
        found.append(KeyFigure(agreement, f"top-1 agreement with the teacher, {domain}"))
    return found


def headline(results: Results) -> str:
    """Return the run in one or two sentences."""
    if "student" not in results["models"]:
        return "This run has no student: it holds the teacher's results only."
    student = f"A student of {units.count(results['models']['student']['parameters'])} parameters"
    ratio = times_smaller(results)
    if ratio is not None:
        student += f", {ratio:.1f} times smaller{_faster(results)} than its teacher,"
    gap = main_gap(results)
    if classifies(results):
        sentence = f"{student} {_classes_found(results)}"
    elif gap is None:
        sentence = f"{student} was distilled. {no_gap_reason(results, main_domain(results) or '')}"
    elif gap < 0:
        sentence = f"{student} is worse than the same student trained on the labels alone."
    else:
        sentence = (
            f"{student} recovers {units.percent(gap)} of the loss gap between the teacher and "
            "the same student trained on the labels alone."
        )
    if not classifies(results):
        sentence += _since_before(results)
    cache = results["cache"]
    if cache is None:
        return sentence
    kept = f"{cache['bytes_per_token']:.1f} bytes per {task_labels(results).target}"
    return f"{sentence} The teacher's distributions are cached in {kept}."


def _since_before(results: Results) -> str:
    """Return ` Before training ...`, the losses of a loaded student; "" of another one."""
    domain = main_domain(results) or ""
    found = {name: score(results, name, domain) for name in (BEFORE, "student", "baseline")}
    losses = {name: units.number(s["loss"], 4) for name, s in found.items() if s is not None}
    if BEFORE not in losses or "student" not in losses:
        return ""
    labels = f", trained on the labels alone {losses['baseline']}" if "baseline" in losses else ""
    return (
        f" Before training its loss on {domain} was {losses[BEFORE]}; distilled it is "
        f"{losses['student']}{labels}."
    )


def _classes_found(results: Results) -> str:
    """Return the macro F1 of the student, and of the others beside it."""
    domain = main_domain(results) or ""
    found = {model: score(results, model, domain) for model in models(results)}
    of = {model: units.percent(s.get("f1_macro")) for model, s in found.items() if s is not None}
    others = [
        f"before training {f1}" if model == BEFORE else f"its {model} {f1}"
        for model, f1 in of.items()
        if model != "student"
    ]
    return (
        f"reaches a macro F1 of {of.get('student', units.NONE)} on {domain}; {', '.join(others)}."
    )


def no_gap_reason(results: Results, domain: str) -> str:
    """Return the reason why `domain` has no gap recovered."""
    if "baseline" not in results["models"]:
        return "Without a baseline (distill.baseline) no gain over the labels can be claimed."
    if "teacher" not in results["models"]:
        return "Its teacher was not at hand, so the gap to it is not known." + _over_baseline(
            results, domain
        )
    teacher, baseline = (compared_loss(results, m, domain) for m in ("teacher", "baseline"))
    if teacher is not None and baseline is not None and baseline <= teacher:
        return "The baseline is not worse than the teacher, so there is no gap to recover."
    return "The losses do not give a gap to recover."


def _over_baseline(results: Results, domain: str) -> str:
    """Return the student's loss beside that of training on the labels alone."""
    student, baseline = score(results, "student", domain), score(results, "baseline", domain)
    if student is None or baseline is None:
        return ""
    return (
        f" Its loss on {domain} is {student['loss']:.4f}, that of the same student trained on the "
        f"labels alone {baseline['loss']:.4f}."
    )


def codec_text(codec: Mapping[str, Any] | str) -> str:
    """Return `varopt (k 12, head 4)` for a codec's config."""
    if isinstance(codec, str):
        return codec
    rest = ", ".join(f"{key} {value}" for key, value in codec.items() if key != "kind")
    return f"{codec.get('kind', 'codec')}" + (f" ({rest})" if rest else "")
