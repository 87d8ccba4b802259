"""Tables of docs/results.md and docs/gpu.md, and the plot of the former, written from results/.

    python benchmarks/results_page.py

The pages' text stands in the pages themselves. Between `<!-- table: NAME -->` and `<!-- end -->`
this script writes, from results/*.json, so that no figure is typed by hand.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, ROOT, Row
from kdscale.report.charts import line_chart
from kdscale.report.curves import Series

PAGE = ROOT / "docs" / "results.md"
GPU_PAGE = ROOT / "docs" / "gpu.md"
PLOT = ROOT / "docs" / "quality.svg"
STYLE = ROOT / "kdscale" / "report" / "templates" / "style.css"
WITH_GOALS = (
    "quality",
    "step_cost",
    "api",
    "loss",
    "classification",
    "masked_lm",
    "loaded_student",
    "cross_tokenizer",
    "cross_tokenizer_4_passes",
    "prepare_memory",
)

Column = Callable[[Row], str]
"""Text of one cell."""

_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Rewrite the tables and the plot."""
    for page in (PAGE, GPU_PAGE):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    PLOT.write_text(plot(_load("quality")), encoding="utf-8")


def filled(page: str) -> str:
    """Return `page` with every table filled from the results."""

    def table(block: re.Match[str]) -> str:
        return f"{block[1]}\n{TABLES[block[2]]()}\n\n{block[3]}"

    return _BLOCK.sub(table, page)


def quality_table() -> str:
    """Return quality by bytes, and the gap closed."""
    return _table(
        "quality",
        {
            "target": _text("arm"),
            "ids": _figure("distinct_ids", 1),
            "in-memory bytes": lambda row: (
                _number(row.get("bytes_published") or row.get("bytes_decoded"), 1)
                + (" as published" if row.get("bytes_published") else "")
            ),
            "stored bytes": _figure("bytes_at_rest", 1),
            "loss": _with_deviation("loss", 3),
            "KL": _with_deviation("kl", 3),
            "agreement": _percent("agreement"),
            "ECE": _figure("ece", 3),
            "gap closed in loss": _gap_closed("loss"),
            "gap closed in KL": _gap_closed("kl"),
        },
    )


def noise_table() -> str:
    """Return gradient errors by positions a step."""
    rows: dict[str, Row] = {}
    for each in _load("quality")["noise"]:
        row = rows.setdefault(each["arm"], {"target": each["arm"]})
        row[f"{each['positions']:,}"] = each["error"]
    _, *sizes = next(iter(rows.values()))
    return _table(
        rows.values(), {"target": _text("target"), **{size: _figure(size, 3) for size in sizes}}
    )


def curriculum_table() -> str:
    """Return orders, beside `uniform`."""
    return _table(
        "curriculum",
        {
            "start": _text("start"),
            "order": _text("order"),
            "loss": _with_deviation("loss", 3),
            "KL": _with_deviation("kl", 3),
            "agreement": _percent("agreement"),
            "loss over uniform": _with_deviation("loss_over_uniform", 3, sign="+"),
            "KL over uniform": _with_deviation("kl_over_uniform", 3, sign="+"),
        },
    )


def step_table() -> str:
    """Return seconds a step, and ratios."""
    rows = _load("step_cost")["rows"]
    labels = next(row["seconds_a_step"] for row in rows if row["arm"] == "labels")
    return _table(
        rows,
        {
            "targets": _text("arm"),
            "seconds a step": _figure("seconds_a_step", 2),
            "over cross-entropy": lambda row: _number(row["seconds_a_step"] / labels, 3),
        },
    )


def loss_table() -> str:
    """Return time and memory of every loss, by vocabulary."""
    return _table(
        "loss",
        {
            "loss": _text("arm"),
            "vocabulary": _figure("vocab_size", 0),
            "seconds": lambda row: (
                _number(row["seconds"]["median"], 2) if "seconds" in row else row["failure"]
            ),
            "peak memory, MiB": _figure("peak_mib", 0),
        },
    )


def classification_table() -> str:
    """Return experiments and models, with the student's lead over its baseline."""
    return _table(
        "classification",
        {
            "experiment": _text("experiment"),
            "model": _text("model"),
            "parameters": _millions,
            "accuracy": _interval("accuracy", 1, scale=100),
            "precision": _interval("precision_macro", 1, scale=100),
            "recall": _interval("recall_macro", 1, scale=100),
            "F1": _interval("f1_macro", 1, scale=100),
        },
    )


def generalisation_table() -> str:
    """Return variants by domain, with their gain over the plain one."""
    return _table(
        sorted(_load("generalisation")["rows"], key=_text("domain")),
        {
            "domain": _text("domain"),
            "variant": _text("variant"),
            "loss": _interval("loss", 3),
            "better than plain by": lambda row: (
                "" if row["variant"] == "plain" else _interval("gain", 3, sign="+")(row)
            ),
            "teacher's loss": _figure("teacher_loss", 3),
        },
    )


def generalisation_cost_table() -> str:
    """Return the cost of each variant."""
    return _table(
        {row["variant"]: row for row in _load("generalisation")["rows"]}.values(),
        {
            "variant": _text("variant"),
            "rows in the cache": _figure("cache_rows", 0),
            "bytes of the cache": _figure("cache_bytes", 0),
            "capture, s": _figure("capture_seconds", 0),
            "distillation, s": _figure("distill_seconds", 0),
        },
    )


def masked_lm_table() -> str:
    """Return models by domain."""
    return _table(
        sorted(_load("masked_lm")["rows"], key=_text("domain")),
        {
            "domain": _text("domain"),
            "model": _text("model"),
            "parameters": _millions,
            "loss": _figure("loss", 3),
            "KL": _figure("kl_teacher_student", 3),
            "agreement": _percent("agreement_top1"),
            "ECE": _figure("ece", 3),
        },
    )


def loaded_table() -> str:
    """Return a loaded student before and after, by domain."""
    return _table(
        sorted(_load("loaded_student")["rows"], key=_text("domain")),
        {
            "domain": _text("domain"),
            "trained": _text("variant"),
            "teacher": _figure("teacher_loss", 3),
            "before": _interval("before_loss", 3),
            "baseline": _interval("baseline_loss", 3),
            "student": _interval("student_loss", 3),
            "better than before by": _interval("gain_over_before", 3, sign="+"),
            "better than baseline by": _interval("gain_over_baseline", 3, sign="+"),
        },
    )


def loaded_cost_table() -> str:
    """Return what training all weights and adapters costs."""
    return _table(
        _load("loaded_student")["costs"],
        {
            "trained": _text("variant"),
            "seconds of the stage": _median("distill_seconds", 0),
            "tokens/s": _median("tokens_per_second", 0),
            "peak memory of rank 0, GiB": _median("memory_gib", 2),
        },
    )


def cross_tokenizer_table(result: str = "cross_tokenizer") -> str:
    """Return ways to targets in another tokenizer, with what they gain over labels."""
    rows = _load(result)["rows"]
    bits = {row["variant"]: row["bits_per_byte"] for row in rows}

    def gain(row: Row) -> str:
        labels = "shared-labels" if row["variant"].startswith("shared") else "labels"
        if row["variant"] == labels:
            return ""
        return _number(bits[labels] - row["bits_per_byte"], 4, "+")

    return _table(
        rows,
        {
            "variant": _text("variant"),
            "seeds": _figure("seeds", 0),
            "bits per byte": _with_deviation("bits_per_byte", 4),
            "better than labels by": gain,
        },
    )


def gemma_table() -> str:
    """Return the models of a run whose student has another tokenizer, by domain, in bits a byte."""
    models = _load("gemma3-smollm2")["models"]
    rows = [
        {"domain": domain, "model": name, "parameters": found["parameters"]} | score
        for name, found in models.items()
        for domain, score in found["domains"].items()
    ]
    return _table(
        sorted(rows, key=_text("domain")),
        {
            "domain": _text("domain"),
            "model": _text("model"),
            "parameters": _millions,
            "bits per byte": _figure("bits_per_byte", 4),
            "ECE": _figure("ece", 3),
        },
    )


def target_share_table() -> str:
    """Return the share of positions that have a target of the teacher's, by kind of text."""
    sets = _load("gemma3-smollm2")["alignment"]["sets"]
    rows = [
        {"sequences": name, "all": found["share"]} | found["kinds"] for name, found in sets.items()
    ]
    kinds = [name for name in rows[0] if name != "sequences"]
    columns = {"sequences": _text("sequences")} | {name: _percent(name) for name in kinds}
    return _table(rows, columns)


def prepare_table() -> str:
    """Return time and memory of each run."""

    def peak(part: str) -> Column:
        return lambda row: _number(row["peak_of"][part] / 2**20, 0)

    return _table(
        "prepare_memory",
        {
            "corpus, GB": lambda row: f"{row['gigabytes']:g}",
            "run": _text("run"),
            "seconds": _figure("seconds", 0),
            "peak, MiB": lambda row: _number(row["peak_bytes"] / 2**20, 0),
            "driver": peak("driver"),
            "workers": peak("workers"),
            "Ray and its store": peak("ray"),
        },
    )


def goal_table() -> str:
    """Return goals, and the values reached."""
    return _table(
        [goal | {"benchmark": name} for name in WITH_GOALS for goal in _load(name)["goals"]],
        {
            "benchmark": _text("benchmark"),
            "figure": _text("name"),
            "value": _figure("value", 4),
            "goal": _text("goal"),
        },
    )


def gpu_table() -> str:
    """Return the modelled times of the loss and of encoding on a GPU."""
    return _table(
        "gpu_model",
        {
            "part": _text("part"),
            "ideal, ms": _figure("ideal_ms", 1),
            "ms": _figure("ms", 1),
            "over ideal": _figure("over_ideal", 2),
            "kernels": _figure("kernels", 0),
            "GB": _figure("gigabytes", 1),
            "host syncs": _figure("syncs", 0),
            "without Triton": _figure("over_ideal_without_triton", 2),
            "before": _figure("over_ideal_before", 2),
        },
    )


TABLES: dict[str, Callable[[], str]] = {
    "quality": quality_table,
    "noise": noise_table,
    "curriculum": curriculum_table,
    "step": step_table,
    "loss": loss_table,
    "classification": classification_table,
    "generalisation": generalisation_table,
    "generalisation_cost": generalisation_cost_table,
    "masked_lm": masked_lm_table,
    "loaded": loaded_table,
    "loaded_cost": loaded_cost_table,
    "cross_tokenizer": cross_tokenizer_table,
    "cross_tokenizer_4_passes": partial(cross_tokenizer_table, "cross_tokenizer_4_passes"),
    "gemma": gemma_table,
    "target_share": target_share_table,
    "prepare": prepare_table,
    "goals": goal_table,
    "gpu": gpu_table,
}


def plot(found: dict[str, Any]) -> str:
    """Return the plot of quality against stored bytes, an SVG file."""
    rows = [row for row in found["rows"] if row.get("bytes_at_rest")]

    def series(name: str, role: str, size: str, prefix: str, without: str = "-head") -> Series:
        chosen = [r for r in rows if r["arm"].startswith(prefix) and without not in r["arm"]]
        return Series(name, role, sorted((r[size], 100 * r["gap_closed_kl"]) for r in chosen))

    chart = line_chart(
        "quality",
        "Gap closed from labels only to the full distribution, by bytes a token",
        [
            series("varopt, stored", "student", "bytes_at_rest", "varopt"),
            series("Random-Sampling KD, as published", "second", "bytes_published", "sample"),
            series("top-k and a ghost bucket, stored", "baseline", "bytes_at_rest", "topk"),
        ],
        "gap closed in KL to the teacher, %",
        x_label="bytes a token",
    )
    style = STYLE.read_text(encoding="utf-8")
    page = "svg { background: var(--card); font: 12px sans-serif; }"
    drawn = str(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return drawn.replace(">", f"><style>{style}{page}</style>", 1) + "\n"


def _table(rows: str | Iterable[Row], columns: dict[str, Column]) -> str:
    """Return a Markdown table of `rows`, or of those of the benchmark of that name."""
    if isinstance(rows, str):
        rows = _load(rows)["rows"]
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[column(row) for column in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign},.{digits}f}"


def _text(name: str) -> Column:
    return lambda row: str(row[name])


def _figure(name: str, digits: int) -> Column:
    return lambda row: _number(row.get(name), digits)


def _percent(name: str) -> Column:
    return lambda row: "" if row[name] is None else f"{100 * row[name]:.1f}%"


def _millions(row: Row) -> str:
    return f"{row['parameters'] / 1e6:.1f} M" if row.get("parameters") else ""


def _interval(name: str, digits: int, sign: str = "", scale: float = 1) -> Column:
    """Return a column of means, with half their interval where they have one."""

    def text(row: Row) -> str:
        half = row[name]["half_width"]
        within = "" if half is None else f" ± {_number(scale * half, digits)}"
        return _number(scale * row[name]["mean"], digits, sign) + within

    return text


def _median(name: str, digits: int) -> Column:
    return lambda row: _number(row[name]["median"], digits)


def _with_deviation(name: str, digits: int, sign: str = "") -> Column:
    return lambda row: (
        f"{_number(row[name], digits, sign)} ± {_number(row[f'{name}_deviation'], digits)}"
    )


def _gap_closed(name: str) -> Column:
    def text(row: Row) -> str:
        if row["arm"] in ("labels", "full"):
            return ""
        value, deviation = row[f"gap_closed_{name}"], row[f"gap_closed_{name}_deviation"]
        return f"{100 * value:.1f} ± {100 * deviation:.1f}%"

    return text


def _load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
