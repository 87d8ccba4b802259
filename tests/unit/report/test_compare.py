"""Several runs on one page: seeds of one experiment together, others apart."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from kdscale.cli import app
from kdscale.errors import KdscaleError
from kdscale.report.compare import (
    compare_table,
    differences_table,
    experiments,
    figures,
    headline,
    labels,
    summarise_comparison,
    t_interval,
)
from kdscale.report.load import ReportData
from kdscale.report.pages import render_comparison
from tests.unit.report.page import read_page
from tests.unit.report.sample import sample_results, sample_run

F1 = {"teacher": 0.97, "student": 0.95, "baseline": 0.91}


def run_of(seed: int, loss: float, bytes_: float = 15.0, k: int = 12, **config: Any) -> ReportData:
    """Return a run of the sample with another student's loss."""
    results = copy.deepcopy(sample_results(run=f"run-k{k}"))
    results["seed"] = seed
    for metrics in results["models"]["student"]["domains"].values():
        metrics["loss"] = loss
    results["gap_recovered"] = {"validation": 0.3 + seed / 100, "python-docs": None}
    assert results["cache"] is not None
    results["cache"]["bytes_per_token"] = bytes_
    tree = {"name": f"r{seed}", "output": f"runs/{seed}", "seed": seed, "cache": {"k": k}, **config}
    return ReportData(results, {}, tree, yaml.safe_dump(tree))


def test_seeds_of_an_experiment_get_their_mean() -> None:
    runs = [run_of(0, 3.0), run_of(1, 3.2), run_of(0, 3.5, 20.0, k=20), run_of(2, 3.4)]
    assert experiments(runs) == [[0, 1, 3], [2]]
    table = compare_table(runs, "validation")
    names = [row[0] for row in table.rows]
    assert names == ["run-k12"] * 3 + ["run-k12, mean of 3 seeds", "run-k20"]
    loss = table.header.index("Student's loss")
    assert [row[loss] for row in table.rows[:3]] == ["3.0000", "3.2000", "3.4000"]
    # Mean 3.2, deviation 0.2, t(0.975, 2) = 4.3027.
    assert table.rows[3][loss] == f"3.2000 ± {4.302653 * 0.2 / 3**0.5:.4f}"
    assert table.rows[3][table.header.index("Gap recovered")].startswith("31.0% ± ")
    assert table.rows[4][3] == "20.0"


def test_the_interval_is_students() -> None:
    middle, half = t_interval([1.0, 2.0, 3.0, 4.0])
    assert middle == 2.5
    # t(0.975, 3) = 3.1824, deviation 1.2910.
    assert half == pytest.approx(3.1824463 * 1.2909944 / 2, rel=1e-6)


def test_classifiers_are_compared_by_f1() -> None:
    runs = [run_of(seed, 1.0) for seed in (0, 1)]
    for run in runs:
        run.results["task"] = "sequence-classification"
        for name, model in run.results["models"].items():
            for metrics in model["domains"].values():
                metrics["f1_macro"] = F1[name]
    names = [each.name for each in figures(runs, "validation")]
    assert names[:3] == ["Teacher's F1", "Student's F1", "Baseline's F1"]
    assert "95.0%" in summarise_comparison(runs)
    runs[1].results["task"] = "causal-lm"
    with pytest.raises(KdscaleError, match="tasks causal-lm, sequence-classification have no"):
        render_comparison(runs)


def test_runs_without_a_common_set_are_refused() -> None:
    one, other = run_of(0, 3.0), run_of(1, 3.1)
    for model in other.results["models"].values():
        model["domains"] = {"elsewhere": model["domains"]["validation"]}
    with pytest.raises(KdscaleError, match="no evaluation set in common"):
        render_comparison([one, other])


def test_the_page_is_one_file_with_a_chart_for_each_set() -> None:
    runs = [run_of(0, 3.0), run_of(0, 3.5, 20.0, k=20)]
    page = read_page(render_comparison(runs))
    # Only validation has a gap, but both sets have losses; no run here has logged a training.
    drawings = [svg.attributes["id"] for svg in page.all("svg")]
    assert drawings == ["dots-0", "dots-1", "sizes-0", "sizes-1"]
    assert all(svg.attributes["aria-labelledby"] for svg in page.all("svg"))
    assert not page.all("script")
    asked = [e.attributes.get(name, "#") for e in page.every() for name in ("src", "href")]
    assert [url for url in asked if not url.startswith(("data:", "#"))] == []


def test_the_best_experiment_comes_first() -> None:
    runs = [run_of(0, 3.0), run_of(1, 3.2), run_of(0, 3.5, 20.0, k=20)]
    assert headline(runs).startswith("Best on validation is run-k12: gap recovered 30.5% ± ")
    assert headline(runs).endswith(", at 15.0 bytes per token.")
    for run in runs:
        run.results["gap_recovered"] = {}
    assert headline(runs).startswith("Best on validation is run-k12: student's loss 3.1000 ± ")


def test_only_settings_that_differ_are_listed() -> None:
    runs = [
        run_of(0, 3.0, data={"train": {"kind": "text"}, "seq_len": 128}),
        run_of(0, 3.1, k=20, data={"train": {"kind": "csv"}, "seq_len": 128}, extra={"a": 1}),
    ]
    table = differences_table(runs)
    assert table.header == ["Setting", "run-k12", "run-k20"]
    assert table.rows == [
        ["cache.k", "12", "20"],
        ["data.train.kind", "text", "csv"],
        ["extra", "–", '{"a": 1}'],
    ]


def test_runs_of_one_name_are_told_apart() -> None:
    assert labels([run_of(0, 1.0), run_of(0, 1.0, k=20)]) == ["run-k12", "run-k20"]
    assert labels([run_of(0, 1.0), run_of(1, 1.0)]) == ["run-k12, seed 0", "run-k12, seed 1"]
    same = labels([run_of(0, 1.0), run_of(0, 1.0)])
    assert same == ["run-k12, seed 0 (1)", "run-k12, seed 0 (2)"]


def test_the_command_compares_outputs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sample_run(tmp_path / name, sample_results(run=name))
    to = tmp_path / "pages" / "both.html"
    outputs = [str(tmp_path / name) for name in ("a", "b")]
    done = CliRunner().invoke(app, ["report", *outputs, "--to", str(to)])
    assert done.exit_code == 0, done.output
    assert "Comparison of runs" in done.output
    assert "mean of 2 seeds" in to.read_text()
