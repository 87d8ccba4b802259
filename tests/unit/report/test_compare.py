"""Several runs on one page: seeds of one experiment together, others apart."""

import copy
import math
from html.parser import HTMLParser
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
from kdscale.report.compare_html import render_comparison
from kdscale.report.dot_plot import Dots, dot_chart
from kdscale.report.load import Run
from tests.unit.report.page import read_page
from tests.unit.report.sample import sample_results, sample_run

F1 = {"teacher": 0.97, "student": 0.95, "baseline": 0.91}


def run_of(seed: int, loss: float, bytes_: float = 15.0, k: int = 12, **config: Any) -> Run:
    """A run of the sample with another student's loss."""
    results = copy.deepcopy(sample_results(run=f"run-k{k}"))
    results["seed"] = seed
    for metrics in results["models"]["student"]["domains"].values():
        metrics["loss"] = loss
    results["gap_recovered"] = {"validation": 0.3 + seed / 100, "python-docs": None}
    assert results["cache"] is not None
    results["cache"]["bytes_per_token"] = bytes_
    tree = {"name": f"r{seed}", "output": f"runs/{seed}", "seed": seed, "cache": {"k": k}, **config}
    return Run(results, {}, tree, yaml.safe_dump(tree))


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


class Page(HTMLParser):
    """Tags that must have a text alternative, and what could ask the network."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.drawings: list[dict[str, str | None]] = []
        self.asks: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        if tag == "svg":
            self.drawings.append(fields)
        self.asks += [str(fields[name]) for name in ("src", "href") if fields.get(name)]
        assert tag != "script"


def test_the_page_is_one_file_with_a_chart_for_each_set() -> None:
    runs = [run_of(0, 3.0), run_of(0, 3.5, 20.0, k=20)]
    page = Page(render_comparison(runs))
    # Only validation has a gap, but both sets have losses; no run here has logged a training.
    assert [each["id"] for each in page.drawings] == ["dots-0", "dots-1", "sizes-0", "sizes-1"]
    assert all(each["aria-labelledby"] for each in page.drawings)
    assert [ask for ask in page.asks if not ask.startswith(("data:", "#"))] == []


def test_the_best_experiment_comes_first() -> None:
    runs = [run_of(0, 3.0), run_of(1, 3.2), run_of(0, 3.5, 20.0, k=20)]
    assert headline(runs).startswith("Best on validation is run-k12: gap recovered 30.5% ± ")
    assert headline(runs).endswith(", at 15.0 bytes a token.")
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


def test_a_row_of_dots_has_its_seeds_mean_and_interval() -> None:
    rows = [
        Dots("a", (1.0, 3.0), 2.0, (0.0, 4.0), "2.0 ± 2.0"),
        Dots("b" * 60, (1.0,), 1.0, None, "1.0"),
        Dots("diverged", (math.nan,), math.nan, None, "NaN"),
    ]
    svg = read_page(dot_chart("d", "T", rows, "loss")).children[0]
    circles = [(c.attributes["class"], float(c.attributes["cx"])) for c in svg.all("circle")]
    assert [kind for kind, _ in circles] == ["mark seed"] * 2 + ["mark student"] * 2
    places = [at for _, at in circles]
    assert places[2] == pytest.approx((places[0] + places[1]) / 2)
    assert places[3] == places[0]
    assert svg.all("desc")[0].text == f"a: 2.0 ± 2.0. {'b' * 60}: 1.0."
    names = [t.text for t in svg.all("text") if t.attributes["class"] == "key end"]
    assert len(names[1]) == 26
    assert dot_chart("d", "T", rows[2:], "loss") == ""


def test_the_command_compares_outputs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sample_run(tmp_path / name, sample_results(run=name))
    to = tmp_path / "pages" / "both.html"
    outputs = [str(tmp_path / name) for name in ("a", "b")]
    done = CliRunner().invoke(app, ["report", *outputs, "--to", str(to)])
    assert done.exit_code == 0, done.output
    assert "Comparison of runs" in done.output
    assert "mean of 2 seeds" in to.read_text()
