"""Cost of the stages: device hours, money, energy, and the plan's figures beside them."""

import copy
from pathlib import Path

import pytest

from kdscale.report import costs, write_report
from kdscale.report.costs import cost_sentences, cost_table, stage_costs, total_cost
from tests.unit.report.page import read_page
from tests.unit.report.sample import old_results, sample_results, sample_run

# Seconds of the sample's stages by their devices.
HOURS = (21.4 + 2 * (231.0 + 44.9 + 118.2 + 31.7)) / 3600
PLANNED = (20 + 400 + 100 + 200 + 20) / 3600


def test_device_hours_are_wall_time_times_devices() -> None:
    found = stage_costs(sample_results())
    by_stage = {each.stage: each for each in found}
    assert by_stage["teacher"].device_hours == pytest.approx(2 * 231 / 3600)
    assert by_stage["prepare"].device_hours == pytest.approx(21.4 / 3600)
    total = total_cost(found)
    assert total.device_hours == pytest.approx(HOURS)
    assert total.dollars == pytest.approx(HOURS * 6.88)
    assert total.kwh == pytest.approx(HOURS * 0.7)
    assert total.of_plan == pytest.approx(HOURS / PLANNED)
    assert by_stage["cache"].of_plan == pytest.approx(44.9 / 50)


def test_the_page_says_what_it_cost_and_what_that_rests_on(tmp_path: Path) -> None:
    store = sample_run(tmp_path)
    summary = write_report(store)
    page = read_page(store.get("report/index.html").decode())
    section = next(s for s in page.all("section") if s.attributes["id"] == "cost")
    said = (
        f"The run took 7 min 27 s: {HOURS:,.4g} GPU hours, ${HOURS * 6.88:.2f}, "
        f"{HOURS * 700:,.3g} Wh. That is {HOURS / PLANNED:.2f} times what kdscale plan foresees."
    )
    assert said in section.text
    assert said in summary
    assert "Money: $6.88 a device and hour, AWS p5.48xlarge." in section.text
    rests_on = "thermal design power (700 W a device, NVIDIA's data sheet) times device hours"
    assert f"Energy: {rests_on}, not measured." in section.text
    assert "The plan: Text: known. Speed: assumed." in section.text
    rows = [[c.text for c in row.children] for row in section.all("tbody")[0].all("tr")]
    assert rows[1] == [
        *("teacher", "3 min 51 s", "3 min 20 s", "0.1283", "0.1111", "1.16×"),
        *("$0.88", "89.8 Wh"),
    ]
    assert rows[-1][0] == "all"


def test_what_is_not_known_is_not_shown() -> None:
    results = sample_results()
    devices = copy.deepcopy(results["devices"])
    devices |= {"kind": "cpu", "price_hour": None, "watts": None, "planned": {}, "assumptions": []}
    results["devices"] = devices
    text = " ".join(cost_sentences(results))
    assert "core hours" in text
    assert "$" not in text
    assert "No price is known of this machine's cores." in text
    assert "Energy is not known." in text
    assert "foresees" not in text
    table = cost_table(results)
    assert table is not None
    assert "Money" not in table.header
    assert "Energy" not in table.header
    assert table.rows[0][2] == "–"


def test_results_without_devices_have_the_time_alone(tmp_path: Path) -> None:
    assert cost_table(old_results()) is None
    assert costs.cost_figures(old_results()) == {}
    summary = write_report(sample_run(tmp_path, old_results()))
    assert "## Cost\n\n| Stage | Time |" in summary
    assert "| all | 7 min 27 s |" in summary
