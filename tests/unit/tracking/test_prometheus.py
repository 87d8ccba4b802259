"""Metrics without Ray: nothing happens. With it: tests/ray/test_observability.py."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdscale.report import curves
from kdscale.report.load import ReportData, load_report_data
from kdscale.report.pages import render_report
from kdscale.tracking import prometheus as metrics
from kdscale.tracking.metrics import BY_KEY, EXPORTED, TABLE
from tests.unit.report.sample import sample_run

DOCS = Path(__file__).parents[3] / "docs" / "observability.md"


class Spy:
    """Stand-in for a metric of Ray that keeps its values."""

    def __init__(self) -> None:
        self.values: list[tuple[float, dict[str, str]]] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values.append((value, dict(tags)))

    inc = set


@pytest.fixture
def spies(monkeypatch: pytest.MonkeyPatch) -> dict[str, Spy]:
    made = {name: Spy() for name in EXPORTED}
    monkeypatch.setattr(metrics, "_made", dict[str, Any](made))
    monkeypatch.setattr(metrics, "_tags", None)
    monkeypatch.setattr(metrics, "_counted", {})
    return made


def test_outside_of_a_worker_nothing_is_measured_or_imported() -> None:
    code = (
        "import sys; from kdscale.tracking import prometheus as metrics; "
        "metrics.gauge('kdscale_loss', 1.0); metrics.count('kdscale_tokens', 1); "
        "metrics.progress('rows', 1, 2, 3); metrics.logged({'train/loss': 1.0}); "
        "print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_table_of_metrics_is_documented() -> None:
    text = DOCS.read_text()
    for metric in TABLE:
        exported = metric.exported + "_total" * (metric.kind == "Counter")
        names = [f"`{name}`" if name else "" for name in (metric.key, exported)]
        views = [name for name in ("view", "report") if getattr(metric, name)]
        cells = [*names, metric.unit, ", ".join(views), metric.help]
        assert f"| {' | '.join(cells)} |" in text


def test_metrics_have_one_name_each() -> None:
    assert len(BY_KEY) == sum(bool(metric.key) for metric in TABLE)
    assert len(EXPORTED) == sum(bool(metric.exported) for metric in TABLE)
    assert all(metric.key for metric in TABLE if metric.view or metric.report)


def test_the_report_draws_what_the_table_says(tmp_path: Path) -> None:
    asked: set[str] = set()

    class Asked(ReportData):
        def series(self, stage: str, key: str) -> list[tuple[float, float]]:
            asked.add(key)
            return super().series(stage, key)

    run = Asked(**vars(load_report_data(sample_run(tmp_path))))
    render_report(run)
    # Without the loss on the labels alone, the training loss is drawn.
    curves.losses(replace(run, metrics={}))
    assert asked == {metric.key for metric in TABLE if metric.report}


def test_tokens_count_from_where_the_attempt_begins(spies: dict[str, Spy]) -> None:
    metrics.bind("r", "distill", 0, 1)
    assert spies["kdscale_attempt"].values[0][0] == 1
    for part, tokens in (("student", 500), ("student", 700), ("baseline", 0), ("baseline", 60)):
        metrics.progress(part, 1, 9, tokens)
    tags = {"run": "r", "stage": "distill", "rank": "0"}
    assert spies["kdscale_tokens"].values == [
        (200, tags | {"part": "student"}),
        (60, tags | {"part": "baseline"}),
    ]


def test_a_finished_stage_exports_nothing_more(spies: dict[str, Spy]) -> None:
    metrics.bind("r", "teacher", 1, 0)
    metrics.progress("teacher", 9, 9, 50)
    metrics.release()
    metrics.gauge("kdscale_loss", 1.0)
    tags = {"run": "r", "stage": "teacher", "rank": "1", "part": ""}
    assert spies["kdscale_working"].values == [(1, tags), (0, tags)]
    assert spies["kdscale_loss"].values == []
    metrics.release()
    metrics.bind("r", "cache", 1, 0)
    assert spies["kdscale_working"].values[2:] == [(1, tags | {"stage": "cache"})]


def test_a_total_is_counted_once(spies: dict[str, Spy]) -> None:
    metrics.bind("r", "cache", 1, 0)
    for total in (0.0, 1.5, 1.5, 4.0):
        metrics.count_to("kdscale_queue_wait_seconds", total)
    assert [value for value, _ in spies["kdscale_queue_wait_seconds"].values] == [1.5, 2.5]


def test_only_known_metrics_are_exported(spies: dict[str, Spy]) -> None:
    metrics.bind("r", "teacher", 0, 0)
    metrics.logged({"train/loss": 4.0, "curriculum/pool_size": 7.0})
    assert spies["kdscale_loss"].values[0][0] == 4.0
    assert not any(spy.values for name, spy in spies.items() if name.endswith("kl"))
