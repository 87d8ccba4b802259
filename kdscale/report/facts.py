"""What a report says, as plain text and tables; HTML, Markdown and model card say it the same way.

Every sentence here is derived from the results, so that a number is rounded once and a missing
baseline or cache is explained once.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from kdscale.evaluate.results import CacheFacts, DomainMetrics, Results
from kdscale.report import formatting as units
from kdscale.report.labels import classifies, words_of
from kdscale.report.load import Run

MODELS = ("teacher", "student", "baseline")
HOME = "validation"
"""The evaluation set that comes from the training corpus."""
HARDWARE = {"cpu": "CPU", "cores": "Cores", "memory_bytes": "Memory", "gpus": "GPUs"}
CACHE_NAMED = ("codec", "bytes_per_token", "bytes", "rows", "targets")
# What says which cache it was, not what it holds: told with the rest of the provenance.
CACHE_IDENTITY = ("url", "fingerprint", "created", "version", "identity")


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of a row is its header, the others are figures.

    `name` is for tables whose caption holds what differs between the runs of an experiment.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    name: str = ""


@dataclass(frozen=True)
class KeyFigure:
    """A figure that decides whether to read on, and what it is a figure of."""

    value: str
    meaning: str


def created(results: Results) -> str:
    """When, as a person reads it."""
    return results["created"].replace("T", " ").replace("+00:00", " UTC")


def models(results: Results) -> list[str]:
    """The models that were evaluated, teacher first, others than the run's own last."""
    return in_order(results["models"])


def in_order(names: Collection[str]) -> list[str]:
    """Names of models in the order of all tables."""
    return [n for n in MODELS if n in names] + [n for n in names if n not in MODELS]


def domains(results: Results) -> list[str]:
    """The evaluation domains, `validation` first."""
    names = dict.fromkeys(name for m in models(results) for name in results["models"][m]["domains"])
    return sorted(names, key=lambda name: name != HOME)


def main_domain(results: Results) -> str | None:
    """The domain that headlines speak of: `validation` where it exists."""
    return next(iter(domains(results)), None)


def score(results: Results, model: str, domain: str) -> DomainMetrics | None:
    """The metrics of `model` on `domain`, or None."""
    if model not in results["models"]:
        return None
    return results["models"][model]["domains"].get(domain)


def times_smaller(results: Results) -> float | None:
    """Parameters of the teacher over those of the student."""
    teacher, student = results["models"].get("teacher"), results["models"].get("student")
    if not teacher or not student or not student["parameters"]:
        return None
    return teacher["parameters"] / student["parameters"]


def times_faster(results: Results) -> tuple[float, Sequence[float]] | None:
    """Tokens a second of the student over those of the teacher, in batched forwards, and the 95 %
    interval of that; None where too little was measured for an interval."""
    speed = results["speed"]["models"].get("student") if "speed" in results else None
    times, interval = (
        (speed.get("times_teacher"), speed.get("times_teacher_interval")) if speed else (None, None)
    )
    return None if times is None or interval is None else (times, interval)


def _faster(results: Results) -> str:
    """` and 5.9 (5.2 to 6.4) times faster`, where the interval leaves no doubt of which is."""
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
    """Gap recovered on the main domain."""
    return results["gap_recovered"].get(main_domain(results) or "")


def key_figures(results: Results) -> list[KeyFigure]:
    """How much smaller, how much faster, how much of the gap recovered, at how many bytes, how like
    the teacher: those that the run has."""
    found = []
    domain = main_domain(results) or ""
    ratio, gap = times_smaller(results), main_gap(results)
    if ratio is not None:
        teacher, student = (results["models"][m]["parameters"] for m in ("teacher", "student"))
        sizes = f"{units.count(teacher)} to {units.count(student)} parameters"
        found.append(KeyFigure(f"{ratio:.1f}×", f"smaller: {sizes}"))
    speed = times_faster(results)
    if speed is not None and "speed" in results:
        times, (low, high) = speed
        meaning = f"as many tokens a second ({low:.1f} to {high:.1f}), {results['speed']['device']}"
        found.append(KeyFigure(f"{times:.1f}×", meaning))
    if gap is not None:
        found.append(KeyFigure(units.percent(gap), f"of the loss gap recovered, {domain}"))
    if results["cache"] is not None:
        kept = units.number(results["cache"]["bytes_per_token"], 1)
        target = words_of(results).target
        found.append(KeyFigure(f"{kept} B", f"a {target} keeps what the teacher knows"))
    student_score = score(results, "student", domain)
    if student_score and "f1_macro" in student_score:
        macro = units.percent(student_score["f1_macro"])
        found.append(KeyFigure(macro, f"macro F1 of the student, {domain}"))
    if student_score and "agreement_top1" in student_score:
        agreement = units.percent(student_score["agreement_top1"])
        found.append(KeyFigure(agreement, f"top-1 agreement with the teacher, {domain}"))
    return found


def headline(results: Results) -> str:
    """The run in one or two sentences."""
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
    cache = results["cache"]
    if cache is None:
        return sentence
    kept = f"{cache['bytes_per_token']:.1f} bytes a {words_of(results).target}"
    return f"{sentence} What the teacher knows is cached in {kept}."


def _classes_found(results: Results) -> str:
    """How well the student tells classes apart, and the other two."""
    domain = main_domain(results) or ""
    found = {model: score(results, model, domain) for model in models(results)}
    of = {model: units.percent(s.get("f1_macro")) for model, s in found.items() if s is not None}
    others = [f"its {model} {f1}" for model, f1 in of.items() if model != "student"]
    return (
        f"reaches a macro F1 of {of.get('student', units.NONE)} on {domain}; {', '.join(others)}."
    )


def no_gap_reason(results: Results, domain: str) -> str:
    """Why there is no gap recovered on `domain`."""
    if "baseline" not in results["models"]:
        return "Without a baseline (distill.baseline) no gain over the labels can be claimed."
    teacher, baseline = score(results, "teacher", domain), score(results, "baseline", domain)
    if teacher and baseline and baseline["loss"] <= teacher["loss"]:
        return "The baseline is not worse than the teacher, so there is no gap to recover."
    return "The losses do not give a gap to recover."


def confusion_table(results: Results, model: str, domain: str) -> Table | None:
    """How often each class was taken for which, a row a class; None where there is nothing."""
    metrics = score(results, model, domain)
    names = results.get("classes", [])
    counts = metrics.get("confusion") if metrics else None
    if not names or not counts:
        return None
    rows = [[name, *map(str, line)] for name, line in zip(names, counts, strict=True)]
    caption = f"{domain}: what the {model} takes each class for"
    return Table(caption, ["Class", *names], rows)


def calibration_table(results: Results, domain: str) -> Table:
    """Confidence, accuracy and size of every bin, a row a model and bin."""
    rows = []
    for model in models(results):
        metrics = score(results, model, domain)
        for found in metrics["calibration"] if metrics else ():
            shares = units.percent(found["confidence"]), units.percent(found["accuracy"])
            rows.append([model, *shares, f"{found['count']:,}"])
    header = ["Model", "Confidence", "Accuracy", "Positions"]
    return Table(f"calibration on {domain}", header, rows)


def codec_text(codec: Mapping[str, Any] | str) -> str:
    """`varopt (k 12, head 4)` of a codec's config."""
    if isinstance(codec, str):
        return codec
    rest = ", ".join(f"{key} {value}" for key, value in codec.items() if key != "kind")
    return f"{codec.get('kind', 'codec')}" + (f" ({rest})" if rest else "")


def cache_table(cache: CacheFacts, target: str = "token") -> Table:
    """What the cache holds and weighs; facts beyond the schema follow as they are."""
    rows = [
        ["Codec", codec_text(cache["codec"])],
        [f"Bytes a {target} (at rest)", units.number(cache["bytes_per_token"], 2)],
        ["Size of all objects", units.size(cache["bytes"])],
        ["Rows", f"{cache['rows']:,}"],
        ["Target positions", f"{cache['targets']:,}"],
    ]
    told = (*CACHE_NAMED, *CACHE_IDENTITY)
    extra = {key: value for key, value in cache.items() if key not in told}
    rows += [[key.replace("_", " ").capitalize(), _plain(value)] for key, value in extra.items()]
    return Table("The logit cache", ["Fact", "Value"], rows)


def stage_table(results: Results) -> Table:
    """Wall time of each stage, and of all."""
    seconds = results["seconds"]
    rows = [[stage, units.duration(value)] for stage, value in seconds.items()]
    rows.append(["all", units.duration(sum(seconds.values()))])
    return Table("Wall time of the stages", ["Stage", "Time"], rows)


def speed_table(run: Run) -> Table:
    """Medians of what the stages logged about their speed; no rows where they logged nothing."""
    rows = []
    for stage in run.metrics:
        speed = [value for _, value in run.series(stage, "tokens_per_second")]
        wait = [value for _, value in run.series(stage, "data_wait_share")]
        if speed or wait:
            rows.append(
                [
                    stage,
                    units.count(median(speed)) if speed else units.NONE,
                    units.percent(median(wait) if wait else None),
                ]
            )
    header = ["Stage", "Tokens a second", "Waiting for data"]
    return Table("Speed (medians over the logged steps)", header, rows)


def provenance_table(results: Results) -> Table:
    """Where the figures come from: what it takes to make them again."""
    hardware = {key: _plain(value) for key, value in results["hardware"].items()}
    if isinstance(memory := results["hardware"].get("memory_bytes"), int | float):
        hardware = {**hardware, "memory_bytes": units.size(memory)}
    rows = [
        ["Output", results["output"]],
        ["Created", created(results)],
        ["Seed", str(results["seed"])],
        ["Config fingerprint", results["config_fingerprint"]],
        *_cache_identity(results["cache"] or {}),
        *([HARDWARE.get(key, key), value] for key, value in hardware.items()),
        ["Versions", ", ".join(f"{k} {v}" for k, v in results["versions"].items())],
    ]
    return Table("Provenance", ["Fact", "Value"], rows)


def _cache_identity(cache: Mapping[str, Any]) -> list[list[str]]:
    """Which cache it was; what made it comes one fact a line."""
    named = {f"Cache: {key}": cache[key] for key in CACHE_IDENTITY if key in cache}
    identity = named.pop("Cache: identity", None)
    if isinstance(identity, Mapping):
        named |= {f"Cache: {key.replace('_', ' ')}": value for key, value in identity.items()}
    return [[name, _plain(value)] for name, value in named.items()]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: units.NONE}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
