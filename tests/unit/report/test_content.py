"""Page and JSON say the same; results from before say what they can."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdscale.cli import app
from kdscale.evaluate.schema import Results
from kdscale.report import facts, write_report
from kdscale.report.content import as_json
from kdscale.report.load import load_report_data
from tests.unit.report.page import Element, read_page
from tests.unit.report.sample import (
    AUDIT,
    class_results,
    old_results,
    sample_results,
    sample_run,
)


def _tables(element: Element) -> list[tuple[str, list[list[str]]]]:
    """Return caption and cells of each table."""
    return [
        (t.all("caption")[0].text, [[c.text for c in row.children] for row in t.all("tr")])
        for t in element.all("table")
    ]


def _chart_data(page: Element) -> list[tuple[str, list[list[str]]]]:
    folded = [d for d in page.all("details") if d.attributes.get("class") == "data"]
    return [table for details in folded for table in _tables(details)]


@pytest.mark.parametrize("make", [sample_results, class_results, old_results])
def test_json_has_the_figures_of_the_page_and_no_others(tmp_path: Path, make: Any) -> None:
    store = sample_run(tmp_path, make())
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--format", "json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    page = read_page(store.get("report/index.html").decode())
    on_page, chart_data = _tables(page), _chart_data(page)
    told: list[tuple[str, list[list[str]]]] = []
    for name, section in found["sections"].items():
        for table in section["tables"]:
            # Names and values have no header on the page, as the heading says what they are.
            plain = [table["header"], *table["rows"]]
            rows = next((r for r in (plain, table["rows"]) if (table["caption"], r) in on_page), [])
            assert rows, f"{name}: {table['caption']} is not on the page as JSON has it"
            told.append((table["caption"], rows))
        for sentence in (*section["sentences"], *section["notes"]):
            assert sentence in page.text
    assert [t for t in on_page if t not in told and t not in chart_data] == []
    tiles = [(t.all("strong")[0].text, t.all("span")[0].text) for t in page.all("ul")[0].all("li")]
    assert [(each["value"], each["meaning"]) for each in found["key_figures"]] == tiles
    assert found["headline"] == page.all("p")[1].text


def test_the_numbers_are_those_of_the_cells(tmp_path: Path) -> None:
    found = as_json(load_report_data(sample_run(tmp_path)))["sections"]
    cost = {row[0]: row for row in found["cost"]["tables"][0]["rows"]}
    for stage, figures in found["cost"]["figures"].items():
        assert cost[stage][3] == f"{figures['device_hours']:.4g}"
        assert cost[stage][6] == f"${figures['dollars']:.2f}"
        assert cost[stage][7] == f"{1000 * figures['kwh']:.3g} Wh"
    audit = dict(found["cache"]["tables"][0]["rows"])
    assert audit["Covered mass"] == f"{100 * found['cache']['figures']['kept_mass']:.1f}%"
    assert audit["Squared bias of the gradient"] == "2.1e-05 ± 2e-05"
    ends = {row[0]: row for row in found["training"]["tables"][0]["rows"]}
    for name, figures in found["training"]["figures"]["trainings"].items():
        change = 100 * figures["trend"]["change"]
        assert ends[name][3].startswith(f"{change:+.1f}% (")
        assert ends[name][2] == f"{figures['trend']['end']:.4f}"
    speed = found["speed"]["figures"]
    assert f"{speed['times_faster']:.1f} (4.3 to 4.7)" in str(found["speed"]["tables"])
    gap = found["quality"]["figures"]["gap_recovered"]["validation"]
    assert f"{100 * gap:.1f}% (27.4–32.3)" in str(found["quality"]["tables"])


def test_sections_answer_in_the_order_of_questions(tmp_path: Path) -> None:
    store = sample_run(tmp_path)
    write_report(store)
    page = read_page(store.get("report/index.html").decode())
    asked = [s.attributes["id"] for s in page.all("section")]
    assert asked == [
        *("quality", "cost", "cache", "training", "curriculum", "disagreements", "speed"),
        *("calibration", "samples", "configuration-and-provenance"),
    ]
    assert list(as_json(load_report_data(store))["sections"]) == [
        *("quality", "lm_eval", "cost", "cache", "training", "disagreements", "speed"),
        *("calibration", "samples", "provenance"),
    ]


def _section(tmp_path: Path, name: str, results: Results) -> Element:
    store = sample_run(tmp_path, results)
    write_report(store)
    page = read_page(store.get("report/index.html").decode())
    return next(s for s in page.all("section") if s.attributes["id"] == name)


def test_an_unbiased_cache_is_told_from_a_biased_one(tmp_path: Path) -> None:
    text = _section(tmp_path, "cache", sample_results()).text
    assert "The targets show no bias: that of the gradient is within its error of 0." in text
    assert "They cover 62.4% of the teacher's probability; over 960 positions the mean" in text
    assert "Seconds of the audit1.8" in text
    results = sample_results()
    results["cache_audit"] = AUDIT | {"squared_bias": 3e-2, "variance": 1e-2, "ids_in_common": 0.4}
    text = _section(tmp_path, "cache", results).text
    assert "The targets are biased: 75.0% of the gradient's squared error does not average" in text
    assert "only 40.0% of the ids come out the same: the cache does not agree" in text


def test_disagreements_show_text_and_what_each_says(tmp_path: Path) -> None:
    (table,) = _section(tmp_path, "disagreements", sample_results()).all("table")
    (row,) = table.all("tbody")[0].all("tr")
    assert [cell.text for cell in row.children] == [
        *("validation 1,204:77", "    for <b>line</b> in", "' lines'", "6.12"),
        *("' lines' 91%, '\\n' 2%", "' range' 72%"),
    ]


def test_samples_are_folded_with_greedy_and_drawn_text(tmp_path: Path) -> None:
    section = _section(tmp_path, "samples", sample_results())
    (folded,) = section.all("details")
    assert "open" not in folded.attributes
    names = [th.text for th in folded.all("th")]
    assert names[:6] == [
        *("prompt", "document", "teacher", "teacher, drawn", "student", "student, drawn")
    ]
    assert "the likeliest token each time, and drawn at temperature 1" in folded.text


def test_a_speed_that_may_be_none_is_no_key_figure() -> None:
    results = sample_results()
    student = results["speed"]["models"]["student"]
    student["times_teacher"], student["times_teacher_interval"] = 1.2, [0.97, 1.4]
    assert not [t for t in facts.key_figures(results) if "tokens per second" in t.meaning]
    student["times_teacher_interval"] = [1.05, 1.4]
    assert [t for t in facts.key_figures(results) if "tokens per second" in t.meaning]
