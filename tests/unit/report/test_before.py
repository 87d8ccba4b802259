"""A loaded student as it was before training: a row of every table, and what training changed."""

import copy
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from kdscale.evaluate.results import read_results
from kdscale.evaluate.schema import Results
from kdscale.report import facts, model_card, tables, write_report
from kdscale.report.compare import figures, summarise_comparison
from kdscale.report.load import ReportData
from kdscale.store import open_store
from tests.unit.report.page import read_page
from tests.unit.report.sample import class_results, sample_results, sample_run

LOADED = {
    "teacher": {"load": "Qwen/Qwen3-8B"},
    "distill": {"student": {"load": "Qwen/Qwen3-0.6B"}},
}


def loaded(results: Results) -> Results:
    """Return the results with a student before training, half a nat worse than the baseline."""
    before = copy.deepcopy(results["models"]["baseline"])
    for metrics in before["domains"].values():
        metrics["loss"] += 0.5
        metrics["bits_per_byte"] = 1.9
        if "f1_macro" in metrics:
            metrics["f1_macro"] = 0.5
    results["models"] = {"before": before} | results["models"]
    return results


def test_it_is_the_last_of_the_runs_own_models() -> None:
    results = loaded(sample_results())
    assert facts.models(results) == ["teacher", "student", "baseline", "before"]
    assert facts.in_order(["other", "before", "student"]) == ["student", "before", "other"]


def test_the_report_says_what_training_brought(tmp_path: Path) -> None:
    store = sample_run(tmp_path, loaded(sample_results()))
    assert "before" in read_results(store)["models"]
    summary = write_report(store)
    page = read_page(store.get("report/index.html").decode())
    said = (
        "Before training its loss on validation was 4.0233; distilled it is 3.3821, trained on the "
        "labels alone 3.5233."
    )
    assert said in summary
    assert said in page.text
    assert "Before: the loaded student, before training." in page.text
    table = tables.training_table(read_results(store))
    assert [row[:2] for row in table.rows] == [
        ["baseline, validation", "-0.5000"],
        ["student, validation", "-0.6412"],
        ["baseline, python-docs", "-0.5000"],
        ["student, python-docs", "-0.6116"],
    ]
    assert "| student, validation | -0.6412 |" in summary
    # The gap is still that of the baseline.
    assert read_results(store)["gap_recovered"] == sample_results()["gap_recovered"]


def test_other_runs_say_nothing_of_it(tmp_path: Path) -> None:
    summary = write_report(sample_run(tmp_path))
    assert "before" not in summary.lower()


def test_classifiers_are_told_by_their_f1() -> None:
    results = loaded(class_results())
    assert facts.headline(results).count("before training 50.0%") == 1
    assert tables.training_table(results).header[1:3] == ["Accuracy, points", "F1, points"]


def test_the_card_names_the_start() -> None:
    for which in ("student", "baseline"):
        text = model_card(loaded(sample_results()), which, LOADED)
        assert "It started from `Qwen/Qwen3-0.6B`." in text
        assert ModelCard(text).data.base_model == "Qwen/Qwen3-0.6B"
    local = {"teacher": LOADED["teacher"], "distill": {"student": {"load": "/models/student"}}}
    card = ModelCard(model_card(loaded(sample_results()), "student", local))
    assert card.data.base_model is None
    text = model_card(loaded(sample_results()), "student", LOADED)
    assert "Before training its loss on validation was 4.0233" in text


def test_runs_are_compared_by_it() -> None:
    def data(results: Results) -> ReportData:
        return ReportData(results, {}, LOADED, yaml.safe_dump(LOADED))

    runs = [data(loaded(sample_results())), data(sample_results(run="other"))]
    found = {each.name: each.values for each in figures(runs, "validation")}
    assert found["Loss before training"] == (4.0233, None)
    assert "Loss before training" in summarise_comparison(runs)


def test_results_of_before_it_existed_are_read(tmp_path: Path) -> None:
    store = sample_run(tmp_path)
    assert facts.models(read_results(open_store(str(tmp_path)))) == [
        "teacher",
        "student",
        "baseline",
    ]
    assert store.exists("results.json")
