"""Tables of what is measured beside the scores: speed, lm-eval, samples of text; and of all."""

from kdscale.evaluate.results import HarnessScore, ModelSpeed, Results, Speed
from kdscale.report import facts, scores
from kdscale.report import formatting as units
from kdscale.report.facts import Table


def result_tables(results: Results) -> list[Table]:
    """All figures of the models, as the summary and the model card show them: scores, then speed
    and lm-eval, where there is such a thing."""
    tables = scores.score_tables(results)
    if (speed := model_speed_table(results)) is not None:
        tables.append(speed)
    if results.get("lm_eval"):
        tables.append(harness_table(results))
    return tables


def harness_table(results: Results) -> Table:
    """What the models score on lm-eval's tasks, a row a figure, with standard errors; an arrow says
    which way is better."""
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
    """How fast and how large the models are, a row a model; None where it was not measured."""
    if "speed" not in results:
        return None
    speed = results["speed"]
    writes = any("text_seconds" in found for found in speed["models"].values())
    header = ["Model", "Parameters", "Weights", "Tokens a second", "Times teacher"]
    header += ["One row", "p90"]
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
        f"Speed on {where}, {speed['dtype']}: forwards of {speed['rows']} rows and of one, each of "
        f"{speed['seq_len']} tokens; medians of {_turns(speed)}, models in turn in one process; "
        "in brackets the 95 % interval over the turns"
    )
    return Table(caption, header, rows, name="speed")


def _turns(speed: Speed) -> str:
    batches, others = speed["turns"], speed.get("latency_turns", speed["turns"])
    return f"{batches} turns" + (f" ({others} of single rows)" if others != batches else "")


def _times_teacher(found: ModelSpeed) -> str:
    """How many times as fast a model is; without an interval it is not said."""
    times, interval = found.get("times_teacher"), found.get("times_teacher_interval")
    return units.NONE if times is None or interval is None else units.times(times, *interval)


def sample_tables(results: Results) -> list[Table]:
    """What the models wrote, a table a beginning: who writes, and what."""
    if "samples" not in results:
        return []
    samples = results["samples"]
    how = "the likeliest token each time"
    if samples["temperature"] is not None:
        how = f"drawn at temperature {samples['temperature']:g}"
    return [
        Table(
            f"{samples['domain']}, sample {number}: {samples['new_tokens']} tokens after "
            f"{samples['prompt_tokens']}, {how}",
            ["Model", "Text"],
            [
                ["prompt", text["prompt"]],
                ["document", text["truth"]],
                *([name, text["models"][name]] for name in facts.in_order(text["models"])),
            ],
        )
        for number, text in enumerate(samples["texts"], start=1)
    ]
