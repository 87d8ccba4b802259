"""The page's charts and tables as panels, and the view of them."""

import json
import math
from pathlib import Path
from typing import Any

from kdscale.evaluate.schema import Results
from kdscale.report import tables, write_report
from kdscale.report.load import ReportData, load_report_data
from kdscale.report.panels import panels, summary
from kdscale.tracking.metrics import VIEW_KEYS
from kdscale.tracking.panels import Panel
from kdscale.tracking.wandb_view import build_view
from tests.unit.report.page import read_page
from tests.unit.report.sample import class_results, sample_results, sample_run


def _run(folder: Path, results: Results | None = None) -> ReportData:
    return load_report_data(sample_run(folder, results))


def _by_key(found: list[Panel]) -> dict[str, Panel]:
    assert len({panel.key for panel in found}) == len(found)
    return {panel.key: panel for panel in found}


def test_tables_have_the_pages_cells(tmp_path: Path) -> None:
    run = _run(tmp_path)
    found = _by_key(panels(run))
    table = found["quality/validation"]
    expected = tables.quality_table(run.results, "validation")
    assert table.kind == "table"
    assert [list(table.columns), *table.rows] == [expected.header, *expected.rows]


def test_every_chart_of_the_page_is_a_panel(tmp_path: Path) -> None:
    store = sample_run(tmp_path)
    write_report(store)
    drawings = read_page(store.get("report/index.html").decode()).all("svg")
    charts = [panel for panel in panels(load_report_data(store)) if panel.kind != "table"]
    assert len(charts) == len(drawings)


def test_lines_have_their_points_and_levels_their_length(tmp_path: Path) -> None:
    run = _run(tmp_path)
    chart = _by_key(panels(run))["training/student-and-baseline"]
    assert chart.columns == ("optimiser step", "nats per token", "line")
    validation = [(x, y) for x, y, name in chart.rows if name == "student, validation"]
    assert validation == run.series("distill", "validation/loss")
    assert [row for row in chart.rows if row[2] == "teacher, evaluated"] == [
        [10.0, 3.0512, "teacher, evaluated"],
        [200.0, 3.0512, "teacher, evaluated"],
    ]


def test_confusions_count_documents(tmp_path: Path) -> None:
    found = _by_key(panels(_run(tmp_path, class_results())))
    chart = found["quality/validation-predictions-of-the-student-by-label"]
    assert chart.kind == "confusion"
    assert chart.rows[:2] == [
        ["business", "business", 93],
        ["business", "entertainment and the arts", 4],
    ]


def test_what_is_missing_or_not_finite_is_left_out(tmp_path: Path) -> None:
    results = sample_results(("teacher",))
    results["cache"], results["seconds"] = None, {"teacher": math.nan}
    run = ReportData(results, {}, {}, "")
    keys = set(_by_key(panels(run)))
    assert {key.split("/")[0] for key in keys} == {"quality", "calibration", "provenance"}
    assert set(summary(run)) == {"headline"}
    assert (
        summary(_run(tmp_path))["gap_recovered/validation"]
        == sample_results()["gap_recovered"]["validation"]
    )


def test_a_view_has_the_panels_in_the_reports_order(tmp_path: Path) -> None:
    shown = panels(_run(tmp_path))
    view = build_view("team", "distil", "quickstart", "abc123", shown)
    tree: dict[str, Any] = json.loads(view._to_model().model_dump_json(by_alias=True))
    assert (tree["entity"], tree["project"]) == ("team", "distil")
    section = tree["spec"]["section"]
    banks = section["panelBankConfig"]["sections"]
    names = list(dict.fromkeys(panel.section for panel in shown))
    assert [bank["name"] for bank in banks] == [*names, "stages"]
    assert [len(bank["panels"]) for bank in banks[:-1]] == [
        sum(panel.section == name for panel in shown) for name in names
    ]
    assert [panel["config"]["metrics"] for panel in banks[-1]["panels"]] == [[c] for c in VIEW_KEYS]
    (runs,) = section["runSets"]
    assert '"group"' in json.dumps(runs["filters"])
    assert '"quickstart"' in json.dumps(runs["filters"])
