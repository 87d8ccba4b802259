"""The tables of a report, as text: page, summary, model card and W&B show the same cells."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from kdscale.evaluate.schema import (
    Alignment,
    CacheFacts,
    DomainMetrics,
    HarnessScore,
    ModelSpeed,
    Results,
    Samples,
    Speed,
)
from kdscale.report import facts
from kdscale.report import formatting as units
from kdscale.report.facts import HOME, classifies, task_labels
from kdscale.report.load import ReportData

_HARDWARE = {"cpu": "CPU", "cores": "Cores", "memory_bytes": "Memory", "gpus": "GPUs"}
_CACHE_NAMED = ("codec", "bytes_per_token", "bytes", "rows", "targets")
# Which cache it was, rather than what it holds: shown with the provenance.
_CACHE_IDENTITY = ("url", "fingerprint", "created", "version", "identity")


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of a row is its header, the others are figures.

    `name` is for tables whose caption holds what differs between the runs of an experiment. `look`
    is how a page shows it: `shares` are counts shaded by their share of the row, `facts` names and
    values, `words` wrap, and `texts` keep their spaces and line ends.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    name: str = ""
    look: Literal["figures", "shares", "facts", "words", "texts"] = "figures"


def table_json(table: Table) -> dict[str, Any]:
    """Return a table's text as plain values."""
    return {"caption": table.caption, "header": table.header, "rows": table.rows}


Cell = Callable[[Any], str]  # of DomainMetrics


def _figure(key: str, digits: int = 4) -> Cell:
    return lambda metrics: units.number(metrics.get(key), digits)


def _share(key: str) -> Cell:
    return lambda metrics: units.percent(metrics.get(key))


def _with_interval(key: str) -> Cell:
    return lambda m: units.within(m.get(key), m.get("intervals", {}).get(key))


def _share_with_interval(key: str) -> Cell:
    return lambda m: units.between(m.get(key), m.get("intervals", {}).get(key))


def _scaled_error(metrics: DomainMetrics) -> str:
    """Return the calibration error after temperature scaling, with the temperature."""
    error, temperature = metrics.get("ece_scaled"), metrics.get("temperature")
    if error is None:
        return units.NONE
    return f"{units.number(error, 4)} (T {units.number(temperature, 2)})"


_OF_TOKENS: dict[str, Cell] = {
    "Loss": _with_interval("loss"),
    "Perplexity": _figure("perplexity", 2),
    "Bits/byte": _figure("bits_per_byte"),
    "ECE": _figure("ece"),
    "ECE scaled": _scaled_error,
}
_OF_OWN_TOKENS: dict[str, Cell] = {
    "Tokens": lambda metrics: f"{metrics['tokens']:,}",
    "Bits/byte": _with_interval("bits_per_byte"),
    "Loss": _figure("loss"),
    **{name: _OF_TOKENS[name] for name in ("Perplexity", "ECE", "ECE scaled")},
}
_OF_CLASSES: dict[str, Cell] = {
    "Accuracy": _share_with_interval("accuracy"),
    "F1": _share_with_interval("f1_macro"),
    "Precision": _share("precision_macro"),
    "Recall": _share("recall_macro"),
    "MCC": _figure("mcc", 3),
    "AUROC": _figure("auroc", 3),
    "Loss": _with_interval("loss"),
    "ECE": _figure("ece"),
    "ECE scaled": _scaled_error,
}
_OF_FIDELITY: dict[str, Cell] = {
    "Agreement": _share_with_interval("agreement_top1"),
    "Top 10": _share("overlap_top10"),
    "KL": _with_interval("kl_teacher_student"),
    "KL back": _figure("kl_student_teacher"),
}


def score_tables(results: Results) -> list[Table]:
    """Return the tables of scores.

    One an evaluation set, then likeness to the teacher, change from the first set to the others,
    what training changed in a loaded student, the gap recovered, and the share of positions with a
    target of a student with its own tokenizer.
    """
    domains = facts.domains(results)
    tables = [quality_table(results, domain) for domain in domains]
    if (fidelity := fidelity_table(results)).rows:
        tables.append(fidelity)
    if HOME in domains and len(domains) > 1:
        tables.append(change_table(results))
    if facts.BEFORE in results["models"]:
        tables.append(training_table(results))
    if any(gap is not None for gap in results["gap_recovered"].values()):
        tables.append(gap_table(results))
    if "alignment" in results:
        tables.append(alignment_table(results["alignment"]))
    return tables


def quality_table(results: Results, domain: str) -> Table:
    """Return a row a model: size, losses and calibration, or how well classes are found."""
    columns, unit = (_OF_CLASSES, "documents") if classifies(results) else (_OF_TOKENS, "tokens")
    if "alignment" in results:
        columns, unit = _OF_OWN_TOKENS, "tokens at most"
    scores = {model: facts.score(results, model, domain) for model in facts.models(results)}
    found = {model: metrics for model, metrics in scores.items() if metrics is not None}
    rows = [
        [
            model,
            units.count(results["models"][model]["parameters"]),
            *(cell(metrics) for cell in columns.values()),
        ]
        for model, metrics in found.items()
    ]
    scored = max((metrics["tokens"] for metrics in found.values()), default=0)
    return Table(f"{domain}: {scored:,} {unit}", ["Model", "Parameters", *columns], rows)


def fidelity_table(results: Results) -> Table:
    """Return how like the teacher's the other models' distributions are, by domain."""
    hidden = {"Top 10"} if classifies(results) else set()
    columns = {name: cell for name, cell in _OF_FIDELITY.items() if name not in hidden}
    rows = []
    for domain in facts.domains(results):
        for model in facts.models(results):
            scored = facts.score(results, model, domain)
            if scored is not None and "agreement_top1" in scored:
                rows.append([f"{model}, {domain}", *(cell(scored) for cell in columns.values())])
    return Table("Fidelity to the teacher", ["Model and domain", *columns], rows)


def change_table(results: Results) -> Table:
    """Return how each model's figures on other domains differ from those on HOME."""
    keys, rows = _compared(results), []
    for domain in facts.domains(results):
        for model in facts.models(results):
            home, away = (facts.score(results, model, d) for d in (HOME, domain))
            if domain != HOME and home is not None and away is not None:
                rows.append([f"{model}, {domain}", *_changes(home, away, keys)])
    return Table(f"Change from {HOME}, the training domain", ["Model and domain", *keys], rows)


def training_table(results: Results) -> Table:
    """Return what training changed in a loaded student, on labels alone and distilled."""
    keys, rows = _compared(results), []
    for domain in facts.domains(results):
        for model in ("baseline", "student"):
            before, after = (facts.score(results, m, domain) for m in (facts.BEFORE, model))
            if before is not None and after is not None:
                rows.append([f"{model}, {domain}", *_changes(before, after, keys)])
    return Table("Change from before training", ["Model and domain", *keys], rows)


def _compared(results: Results) -> dict[str, str]:
    """Return the figures whose changes are shown, by the heads of their columns."""
    if not classifies(results):
        return {"Loss": "loss", "Bits/byte": "bits_per_byte", "ECE": "ece"}
    shares = {"Accuracy, points": "accuracy", "F1, points": "f1_macro"}
    return {**shares, "Loss": "loss", "ECE": "ece"}


def _changes(home: Any, away: Any, keys: Mapping[str, str]) -> list[str]:
    cells = []
    for name, key in keys.items():
        scale, digits = (100, 1) if name.endswith("points") else (1, 4)
        before, after = home.get(key), away.get(key)
        change = None if before is None or after is None else scale * (after - before)
        cells.append(units.signed(change, digits))
    return cells


def gap_table(results: Results) -> Table:
    """Return the gap recovered on each domain, with its interval."""
    intervals = results.get("gap_intervals", {})
    rows = [
        [
            domain,
            units.between(gap, intervals.get(domain))
            if gap is not None
            else facts.no_gap_reason(results, domain),
        ]
        for domain, gap in results["gap_recovered"].items()
    ]
    unit = ", in bits per byte" if "alignment" in results else ""
    return Table(f"Share of the loss gap recovered{unit}", ["Domain", "Gap recovered"], rows)


def alignment_table(alignment: Alignment) -> Table:
    """Return the share of the student's positions with a target of the teacher's, by kind of text.

    A row a set of sequences.
    """
    kinds = dict.fromkeys(kind for found in alignment["sets"].values() for kind in found["kinds"])
    rows = [
        [
            name,
            f"{found['positions']:,}",
            units.percent(found["share"]),
            *(units.percent(found["kinds"].get(kind)) for kind in kinds),
            units.percent(found["cut"]),
        ]
        for name, found in alignment["sets"].items()
    ]
    caption = (
        f"Positions with a target of the teacher's: {alignment['student_ids']:,} ids of the "
        f"student, {alignment['teacher_ids']:,} of the teacher, {alignment['classes']:,} classes "
        "that both tell apart; by what the label is made of"
    )
    header = ["Sequences", "Positions", "With a target", *map(str.capitalize, kinds), "Text cut"]
    return Table(caption, header, rows, name="alignment")


def legend(results: Results) -> str:
    """Return the meaning of the tables' columns."""
    target, seen = task_labels(results).target, results.get("context")
    of_classes = (
        "F1, precision and recall are means over the classes; intervals are over documents "
        "drawn again. MCC: Matthews correlation. AUROC: one class against the others, "
        "mean over the classes. "
    )
    of_context = f"Context: at least {seen} of its document's tokens before each, or all there are."
    before = facts.BEFORE in results["models"]
    of_before = " Before: the loaded student, before training." if before else ""
    of_overlap = "Top 10: share of the model's ten likeliest that are among the teacher's. "
    if "alignment" in results:
        return f"{_OWN_TOKENS}{'' if seen is None else of_context}{of_before}"
    return (
        f"{of_classes if classifies(results) else ''}Loss in nats per {target}. In brackets: the "
        "95 % interval. "
        f"{'' if seen is None else of_context + ' '}ECE: expected calibration error over 15 "
        "equal-width bins; scaled: with logits divided by the temperature T that makes the "
        "validation labels likeliest. Agreement: share of targets where the model's top-1 choice "
        f"is the teacher's. {'' if classifies(results) else of_overlap}KL: from the teacher to the "
        f"model, nats per {target}; back: from the model to the teacher. The baseline is the "
        "student trained on the labels alone, with the same steps, order and seed."
        f"{of_before}"
    )


_OWN_TOKENS = (
    "Teacher and student have tokenizers of their own: losses, in nats per token, and perplexities "
    "are of different tokens, and bits per byte of the text compare them. Agreement with the "
    "teacher and KL to it are not defined. ECE: expected calibration error over 15 equal-width "
    "bins; scaled: with logits divided by the temperature T that makes the validation labels "
    "likeliest. The baseline is the student trained on the labels alone, with the same steps, "
    "order and seed. "
)


def result_tables(results: Results) -> list[Table]:
    """Return all tables of the models' figures: scores, then speed and lm-eval where measured."""
    tables = score_tables(results)
    if (speed := model_speed_table(results)) is not None:
        tables.append(speed)
    if results.get("lm_eval"):
        tables.append(harness_table(results))
    return tables


def harness_table(results: Results) -> Table:
    """Return the scores on lm-eval's tasks, a row a figure, with standard errors.

    An arrow points to the better direction.
    """
    found = results.get("lm_eval", {})
    names = facts.in_order(dict.fromkeys(m for task in found.values() for m in task["scores"]))
    rows = []
    for task, entry in found.items():
        figures = dict.fromkeys(f for scores in entry["scores"].values() for f in scores)
        for figure in figures:
            better = entry["higher_is_better"].get(figure.partition(" ")[0])
            arrow = {True: " ↑", False: " ↓", None: ""}[better]
            cells = [_scored(entry["scores"].get(name, {}).get(figure)) for name in names]
            rows.append([task, figure + arrow, f"{entry['documents']:,}", *cells])
    header = ["Task", "Figure", "Documents", *names]
    return Table(_harness_note(results), header, rows, name="lm-eval")


def _scored(score: HarnessScore | None) -> str:
    if score is None:
        return units.NONE
    digits = 4 if abs(score["value"]) < 100 else 1
    text, error = units.number(score["value"], digits), score["stderr"]
    return text if error is None else f"{text} ± {units.number(error, digits)}"


def _harness_note(results: Results) -> str:
    found = results.get("lm_eval", {})
    versions = ", ".join(sorted({entry["lm_eval"] for entry in found.values()}))
    limited = any(entry["limit"] is not None for entry in found.values())
    return (
        f"lm-eval {versions}; ± is the standard error. Tasks heldout_* ask about the "
        "run's own held-out documents."
        + (" Only the first documents of some tasks were asked." if limited else "")
    )


def model_speed_table(results: Results) -> Table | None:
    """Return speed and size of the models, a row a model; None where not measured."""
    if "speed" not in results:
        return None
    speed = results["speed"]
    writes = any("text_seconds" in found for found in speed["models"].values())
    header = ["Model", "Parameters", "Weights", "Tokens per second", "Times teacher"]
    header += ["One sequence", "p90"]
    header += [f"{speed['new_tokens']} new tokens", "p90"] if writes else []
    rows = []
    for name in facts.in_order(speed["models"]):
        found = speed["models"][name]
        size, seconds = found["bytes"], [found["row_seconds"], found["row_seconds_p90"]]
        texts = [found.get("text_seconds"), found.get("text_seconds_p90")] if writes else []
        rows.append(
            [
                name,
                units.count(results["models"][name]["parameters"]),
                units.NONE if size is None else units.size(size),
                units.count(found["tokens_per_second"]),
                _times_teacher(found),
                *map(units.latency, [*seconds, *texts]),
            ]
        )
    where = speed["device"]
    if where == "CPU":
        where += f", {speed['threads']} thread{'s' * (speed['threads'] > 1)}"
    caption = (
        f"Speed on {where}, {speed['dtype']}: forwards of {speed['rows']} sequences and of "
        f"one, each of {speed['seq_len']} tokens; medians of {_turns(speed)}, models in turn in "
        "one process; "
        "in brackets the 95 % interval over the turns"
    )
    return Table(caption, header, rows, name="speed")


def _turns(speed: Speed) -> str:
    batches, others = speed["turns"], speed.get("latency_turns", speed["turns"])
    return f"{batches} turns" + (f" ({others} of single sequences)" if others != batches else "")


def _times_teacher(found: ModelSpeed) -> str:
    """Return a model's speed over the teacher's, or a dash where it has no interval."""
    times, interval = found.get("times_teacher"), found.get("times_teacher_interval")
    return units.NONE if times is None or interval is None else units.times(times, *interval)


def sample_tables(results: Results) -> list[Table]:
    """Return the continuations that the models wrote, one table a prompt."""
    if "samples" not in results:
        return []
    samples, found = results["samples"], []
    for number, text in enumerate(samples["texts"], start=1):
        drawn = text.get("drawn", {})
        rows = [["prompt", text["prompt"]], ["document", text["truth"]]]
        for name in facts.in_order(text["models"]):
            rows.append([name, text["models"][name]])
            rows += [[f"{name}, drawn", drawn[name]]] if name in drawn else []
        caption = (
            f"{samples['domain']}, sample {number}: {samples['new_tokens']} tokens after "
            f"{samples['prompt_tokens']}, {_how(samples)}"
        )
        found.append(Table(caption, ["Model", "Text"], rows, look="texts"))
    return found


def _how(samples: Samples) -> str:
    """Return how the tokens of samples were chosen."""
    if samples["temperature"] is not None:
        return f"drawn at temperature {samples['temperature']:g}"
    greedy = "the likeliest token each time"
    if "drawn_temperature" not in samples:
        return greedy
    return f"{greedy}, and drawn at temperature {samples['drawn_temperature']:g}"


def confusion_table(results: Results, model: str, domain: str) -> Table | None:
    """Return how often each class was predicted as which, a row a class; None without classes."""
    metrics = facts.score(results, model, domain)
    names = results.get("classes", [])
    counts = metrics.get("confusion") if metrics else None
    if not names or not counts:
        return None
    rows = [[name, *map(str, line)] for name, line in zip(names, counts, strict=True)]
    caption = f"{domain}: predictions of the {model} by label"
    return Table(caption, ["Class", *names], rows, look="shares")


def calibration_table(results: Results, domain: str) -> Table:
    """Return confidence, accuracy and size of every bin, a row a model and bin."""
    rows = []
    for model in facts.models(results):
        metrics = facts.score(results, model, domain)
        for found in metrics["calibration"] if metrics else ():
            shares = units.percent(found["confidence"]), units.percent(found["accuracy"])
            rows.append([model, *shares, f"{found['count']:,}"])
    header = ["Model", "Confidence", "Accuracy", "Positions"]
    return Table(f"calibration on {domain}", header, rows)


def cache_table(cache: CacheFacts, target: str = "token") -> Table:
    """Return the cache's contents and size; facts beyond the schema follow as they are."""
    rows = [
        ["Codec", facts.codec_text(cache["codec"])],
        [f"Bytes per {target} (stored)", units.number(cache["bytes_per_token"], 2)],
        ["Size of all objects", units.size(cache["bytes"])],
        ["Sequences", f"{cache['rows']:,}"],
        ["Target positions", f"{cache['targets']:,}"],
    ]
    told = (*_CACHE_NAMED, *_CACHE_IDENTITY)
    extra = {key: value for key, value in cache.items() if key not in told}
    rows += [[key.replace("_", " ").capitalize(), _plain(value)] for key, value in extra.items()]
    return Table("The logit cache", ["Fact", "Value"], rows, look="facts")


def stage_table(results: Results) -> Table:
    """Return the wall time of each stage, and of all."""
    seconds = results["seconds"]
    rows = [[stage, units.duration(value)] for stage, value in seconds.items()]
    rows.append(["all", units.duration(sum(seconds.values()))])
    return Table("Wall time of the stages", ["Stage", "Time"], rows)


def speed_table(run: ReportData) -> Table:
    """Return medians of the stages' logged speed; no rows where nothing was logged."""
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
    header = ["Stage", "Tokens per second", "Waiting for data"]
    return Table("Speed (medians over the logged steps)", header, rows)


def provenance_table(results: Results) -> Table:
    """Return what is needed to reproduce the figures."""
    hardware = {key: _plain(value) for key, value in results["hardware"].items()}
    if isinstance(memory := results["hardware"].get("memory_bytes"), int | float):
        hardware = {**hardware, "memory_bytes": units.size(memory)}
    rows = [
        ["Output", results["output"]],
        ["Created", facts.created(results)],
        ["Seed", str(results["seed"])],
        ["Config fingerprint", results["config_fingerprint"]],
        *([["Chat template", results["chat"]]] if "chat" in results else []),
        *_cache_identity(results["cache"] or {}),
        *([_HARDWARE.get(key, key), value] for key, value in hardware.items()),
        ["Versions", ", ".join(f"{k} {v}" for k, v in results["versions"].items())],
    ]
    return Table("Provenance", ["Fact", "Value"], rows, look="facts")


def _cache_identity(cache: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows that identify the cache, one fact a line."""
    named = {f"Cache: {key}": cache[key] for key in _CACHE_IDENTITY if key in cache}
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
