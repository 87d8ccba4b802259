"""Writes the tables of docs/results.md and its plot from what the benchmarks gave.

    python benchmarks/results_page.py

The page's text stands in the page itself. Between `<!-- table: NAME -->` and `<!-- end -->` this
script writes, from results/*.json, so that no figure is typed by hand.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from kdscale.report.charts import line_chart  # noqa: E402  after the path is set
from kdscale.report.curves import Series  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
PLOT = ROOT / "docs" / "quality.svg"
STYLE = ROOT / "kdscale" / "report" / "templates" / "style.css"
WITH_GOALS = ("quality", "step_cost", "loss", "classification", "masked_lm", "prepare_memory")
_CHUNK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Rewrite the tables and the plot."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    PLOT.write_text(plot(_load("quality")), encoding="utf-8")


def filled(page: str) -> str:
    """`page` with every table as the results have it."""

    def table(block: re.Match[str]) -> str:
        return f"{block[1]}\n{TABLES[block[2]]()}\n\n{block[3]}"

    return _CHUNK.sub(table, page)


def quality_table() -> str:
    """Arms by bytes, with the share of the way."""
    return _table(
        "target | ids | bytes decoded | bytes at rest | loss | KL | agreement | ECE "
        "| way in loss | way in KL",
        (
            (
                row["arm"],
                _number(row.get("distinct_ids"), 1),
                _number(row.get("bytes_published") or row.get("bytes_decoded"), 1)
                + (" as published" if row.get("bytes_published") else ""),
                _number(row.get("bytes_at_rest"), 1),
                _with_deviation(row, "loss", 3),
                _with_deviation(row, "kl", 3),
                _percent(row["agreement"]),
                _number(row["ece"], 3),
                _share_of_way(row, "loss"),
                _share_of_way(row, "kl"),
            )
            for row in _load("quality")["rows"]
        ),
    )


def noise_table() -> str:
    """Gradient errors by positions a step."""
    found = _load("quality")["noise"]
    sizes = sorted({each["positions"] for each in found})
    errors = {(each["arm"], each["positions"]): each["error"] for each in found}
    names = dict.fromkeys(each["arm"] for each in found)
    head = " | ".join(["target", *(f"{size:,}" for size in sizes)])
    return _table(
        head, ([name, *(_number(errors[name, size], 3) for size in sizes)] for name in names)
    )


def curriculum_table() -> str:
    """Orders, beside `uniform`."""
    return _table(
        "start | order | loss | KL | agreement | loss over uniform | KL over uniform",
        (
            (
                row["start"],
                row["order"],
                _with_deviation(row, "loss", 3),
                _with_deviation(row, "kl", 3),
                _percent(row["agreement"]),
                _with_deviation(row, "loss_over_uniform", 3, sign="+"),
                _with_deviation(row, "kl_over_uniform", 3, sign="+"),
            )
            for row in _load("curriculum")["rows"]
        ),
    )


def step_table() -> str:
    """Seconds a step, as ratios."""
    found = _load("step_cost")
    rows = {row["arm"]: row["seconds_a_step"] for row in found["rows"]}
    return _table(
        "arm | seconds a step | over cross-entropy",
        (
            (name, _number(seconds, 2), _number(seconds / rows["labels"], 3))
            for name, seconds in rows.items()
        ),
    )


def loss_table() -> str:
    """Time and memory of every loss, by vocabulary."""
    return _table(
        "loss | vocabulary | seconds | peak memory, MiB",
        (
            (
                row["arm"],
                f"{row['vocab_size']:,}",
                _number(row["seconds"]["median"], 2) if "seconds" in row else row["failure"],
                _number(row.get("peak_mib"), 0),
            )
            for row in _load("loss")["rows"]
        ),
    )


def classification_table() -> str:
    """Experiments and models, with what the student has over its baseline."""
    scores = ("accuracy", "precision_macro", "recall_macro", "f1_macro")
    return _table(
        "experiment | model | parameters | accuracy | precision | recall | F1",
        (
            (
                row["experiment"],
                row["model"],
                _millions(row.get("parameters")),
                *(_points(row[score]) for score in scores),
            )
            for row in _load("classification")["rows"]
        ),
    )


def generalisation_table() -> str:
    """Variants by domain, with what each is better by than the plain one."""
    return _table(
        "domain | variant | loss | better than plain by | teacher's loss",
        (
            (
                row["domain"],
                row["variant"],
                _interval(row["loss"], 3),
                "" if row["variant"] == "plain" else _interval(row["gain"], 3, sign="+"),
                _number(row["teacher_loss"], 3),
            )
            for row in sorted(_load("generalisation")["rows"], key=lambda row: row["domain"])
        ),
    )


def generalisation_cost_table() -> str:
    """What each variant takes."""
    rows = {row["variant"]: row for row in _load("generalisation")["rows"]}
    return _table(
        "variant | rows in the cache | bytes of the cache | capture, s | distillation, s",
        (
            (
                name,
                _number(row["cache_rows"], 0),
                _number(row["cache_bytes"], 0),
                _number(row["capture_seconds"], 0),
                _number(row["distill_seconds"], 0),
            )
            for name, row in rows.items()
        ),
    )


def masked_lm_table() -> str:
    """Models by domain."""
    return _table(
        "domain | model | parameters | loss | KL | agreement | ECE",
        (
            (
                row["domain"],
                row["model"],
                _millions(row["parameters"]),
                _number(row["loss"], 3),
                _number(row["kl_teacher_student"], 3),
                "" if row["agreement_top1"] is None else _percent(row["agreement_top1"]),
                _number(row["ece"], 3),
            )
            for row in sorted(_load("masked_lm")["rows"], key=lambda row: row["domain"])
        ),
    )


def prepare_table() -> str:
    """Time and memory of each run."""
    return _table(
        "corpus, GB | run | seconds | peak, MiB | driver | workers | Ray and its store",
        (
            (
                f"{row['gigabytes']:g}",
                row["run"],
                _number(row["seconds"], 0),
                _mib(row["peak_bytes"]),
                *(_mib(row["peak_of"][part]) for part in ("driver", "workers", "ray")),
            )
            for row in _load("prepare_memory")["rows"]
        ),
    )


def goal_table() -> str:
    """What was to be reached, and what was."""
    return _table(
        "benchmark | figure | value | goal",
        (
            (name, goal["name"], _number(goal["value"], 4), goal["goal"])
            for name in WITH_GOALS
            for goal in _load(name)["goals"]
        ),
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
    "prepare": prepare_table,
    "goals": goal_table,
}


def plot(found: dict[str, Any]) -> str:
    """Quality against bytes at rest, as an SVG file of its own."""
    rows = [row for row in found["rows"] if row.get("bytes_at_rest")]

    def series(name: str, role: str, size: str, prefix: str, without: str = "-head") -> Series:
        chosen = [r for r in rows if r["arm"].startswith(prefix) and without not in r["arm"]]
        return Series(name, role, sorted((r[size], 100 * r["gap_closed_kl"]) for r in chosen))

    chart = line_chart(
        "quality",
        "Share of the way from labels only to the full distribution, by bytes a token",
        [
            series("varopt, at rest", "student", "bytes_at_rest", "varopt"),
            series("Random-Sampling KD, as published", "second", "bytes_published", "sample"),
            series("top-k and a ghost bucket, at rest", "baseline", "bytes_at_rest", "topk"),
        ],
        "way in KL to the teacher, %",
        x_label="bytes a token",
    )
    style = STYLE.read_text(encoding="utf-8")
    page = "svg { background: var(--card); font: 12px sans-serif; }"
    drawn = str(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return drawn.replace(">", f"><style>{style}{page}</style>", 1) + "\n"


def _table(head: str, rows: Iterable[Sequence[str]]) -> str:
    columns = head.count(" | ") + 1
    lines = [head, " | ".join(["---"] * columns), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign},.{digits}f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _millions(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:.1f} M"


def _mib(value: float) -> str:
    return _number(value / 2**20, 0)


def _points(spread: dict[str, Any]) -> str:
    """A mean of shares, in percent."""
    return _interval(spread, 1, scale=100)


def _interval(spread: dict[str, Any], digits: int, sign: str = "", scale: float = 1) -> str:
    """A mean, with half its interval where it has one."""
    half = spread["half_width"]
    within = "" if half is None else f" ± {_number(scale * half, digits)}"
    return _number(scale * spread["mean"], digits, sign) + within


def _with_deviation(row: dict[str, Any], name: str, digits: int, sign: str = "") -> str:
    return f"{_number(row[name], digits, sign)} ± {_number(row[f'{name}_deviation'], digits)}"


def _share_of_way(row: dict[str, Any], name: str) -> str:
    if row["arm"] in ("labels", "full"):
        return ""
    value, deviation = row[f"gap_closed_{name}"], row[f"gap_closed_{name}_deviation"]
    return f"{100 * value:.1f} ± {100 * deviation:.1f}%"


def _load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
