"""Several runs on one page: seeds of one experiment together, others apart."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from kdscale.cli import app
from kdscale.errors import KdscaleError
from kdscale.report.comparable import comparable_groups
from kdscale.report.compare import (
    compare_table,
    differences_table,
    experiments,
    figures,
    headline,
    labels,
    reservations,
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


def evaluated(run: ReportData, **changes: Any) -> ReportData:
    """Return the run with what its figures are of."""
    known: Any = {"tokenizer": "t", "teacher": "w", "sets": {"validation": "v", "python-docs": "d"}}
    run.results["evaluated"] = known | changes
    return run


def test_only_comparable_runs_are_joined() -> None:
    runs = [
        evaluated(run_of(0, 3.0, k=1)),
        evaluated(run_of(0, 2.0, k=2), tokenizer="other"),
        evaluated(run_of(0, 3.5, k=3)),
        evaluated(run_of(0, 1.0, k=4), sets={"validation": "less", "python-docs": "d"}),
    ]
    assert comparable_groups(runs, "validation") == [[0, 2], [1], [3]]
    assert comparable_groups(runs, "python-docs") == [[0, 2, 3], [1]]
    said = [
        "run-k2 is not comparable on validation with run-k1: it has another tokenizer.",
        "run-k4 is not comparable on validation with run-k1: it has other evaluation data.",
        "run-k2 is not comparable on python-docs with run-k1: it has another tokenizer.",
    ]
    assert reservations(runs) == said
    page = read_page(render_comparison(runs))
    assert all(sentence in page.text for sentence in said)
    # Run 4's loss is the least, but of other sequences.
    assert "Best on validation among 2 runs that can be compared is run-k1" in page.text
    tables = [
        (t.all("caption")[0].text, [r.all("th")[0].text for r in t.all("tbody")[0].all("tr")])
        for t in page.all("table")
    ]
    assert tables[:5] == [
        ("validation: 2 runs", ["run-k1", "run-k3"]),
        ("validation: 1 run", ["run-k2"]),
        ("validation: 1 run", ["run-k4"]),
        ("python-docs: 3 runs", ["run-k1", "run-k3", "run-k4"]),
        ("python-docs: 1 run", ["run-k2"]),
    ]


def test_another_context_or_number_of_targets_tells_older_results_apart() -> None:
    runs = [run_of(0, 3.0, k=k) for k in (1, 2, 3)]
    for run in runs:
        del run.results["evaluated"]
    runs[1].results["context"] = 512
    for model in runs[2].results["models"].values():
        model["domains"]["validation"]["tokens"] = 7
    assert comparable_groups(runs, "validation") == [[0], [1], [2]]
    assert comparable_groups(runs, "python-docs") == [[0, 2], [1]]
    text = " ".join(reservations(runs))
    assert "run-k2 is not comparable on validation with run-k1: it has another context." in text
    assert headline(runs) == "No two of these 3 runs can be compared."


def test_runs_of_other_teachers_are_compared_by_their_losses_alone() -> None:
    runs = [evaluated(run_of(0, 3.0, k=1)), evaluated(run_of(0, 3.5, k=2), teacher="another")]
    names = [each.name for each in figures(runs, "validation")]
    assert "Student's loss" in names
    assert "Gap recovered" not in names
    assert "Agreement" not in names
    assert "run-k1, run-k2 have different teachers" in reservations(runs)[0]
    assert headline(runs).startswith("Best on validation is run-k1: student's loss 3.0000")


def test_seeds_that_train_a_teacher_each_are_one_experiment() -> None:
    recipe = {"training": {"steps": 640}, "workers": {"count": 2}}
    runs = [evaluated(run_of(seed, 3.0, teacher=recipe), teacher=str(seed)) for seed in range(3)]
    assert reservations(runs) == []
    assert "Gap recovered" in [each.name for each in figures(runs, "validation")]


def test_json_has_the_tables_of_the_comparison(tmp_path: Path) -> None:
    outputs = []
    for name in ("a", "b"):
        sample_run(tmp_path / name, sample_results(run=name))
        outputs.append(str(tmp_path / name))
    to = tmp_path / "page.html"
    command = ["report", *outputs, "--to", str(to), "--format", "json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    page = read_page(to.read_text())
    shown = {
        t.all("caption")[0].text: [[c.text for c in row.children] for row in t.all("tr")]
        for t in page.all("table")
    }
    for table in (*found["tables"], found["settings"], found["provenance"]):
        if table["rows"]:
            assert shown[table["caption"]] == [table["header"], *table["rows"]]
    assert found["headline"] in page.text
    assert found["not_comparable"] == []
