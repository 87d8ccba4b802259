"""A run whose student is the one that an earlier run published, from that run's teacher and cache.

With the whole pipeline: the student before training has the figures that the first run gave it.
"""

import json
import shutil
from pathlib import Path

import pytest

from kdscale.evaluate.results import read_results
from kdscale.evaluate.schema import Results
from kdscale.store import open_store
from tests.runs import FinishedRun, read_metrics, run_kdscale, tiny_config, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


def config_of(first: FinishedRun, folder: Path, student: Path) -> Path:
    output = folder / "output"
    config = tiny_config(first.corpus, str(output), base=str(first.output))
    config["distill"]["student"] = {"load": str(student)}
    return write_config(folder / "load.yaml", config)


@pytest.fixture(scope="module")
def continued(
    finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("continued")
    config = config_of(finished_run, folder, finished_run.output / "student")
    code, log = run_kdscale("run", str(config))
    assert code == 0, log[-6000:]
    assert "cache: complete, skipped" in log
    return folder / "output", read_results(open_store(str(folder / "output")))


def test_the_student_before_training_has_the_first_runs_figures(
    finished_run: FinishedRun, continued: tuple[Path, Results]
) -> None:
    first = read_results(open_store(str(finished_run.output)))
    results = continued[1]
    assert set(results["models"]) == {"teacher", "student", "baseline", "before"}
    for domain, before in results["models"]["before"]["domains"].items():
        student = first["models"]["student"]["domains"][domain]
        for figure in ("loss", "bits_per_byte", "agreement_top1", "kl_teacher_student"):
            assert before[figure] == pytest.approx(student[figure], rel=1e-6), figure
    before, student = (
        results["models"][name]["domains"]["validation"] for name in ("before", "student")
    )
    assert student["loss"] < before["loss"]
    assert results["models"]["before"]["parameters"] == results["models"]["student"]["parameters"]


def test_student_and_baseline_start_from_the_loaded_weights(
    continued: tuple[Path, Results],
) -> None:
    student, baseline = (
        read_metrics((continued[0] / "metrics" / f"{name}.jsonl").read_bytes())
        for name in ("distill", "baseline")
    )
    assert student[0]["train/ce_loss"] == pytest.approx(baseline[0]["train/ce_loss"], rel=1e-6)
    assert student[-1]["train/ce_loss"] != baseline[-1]["train/ce_loss"]


def test_the_report_and_the_cards_tell_of_the_start(
    finished_run: FinishedRun, continued: tuple[Path, Results], tmp_path: Path
) -> None:
    output = continued[0]
    assert [each.name for each in (output / "before").iterdir()] == ["kdscale.json"]
    summary = (output / "report" / "summary.md").read_text()
    assert "Before training its loss on validation was" in summary
    assert "| before |" in summary
    assert "Change from before training" in summary
    card = (output / "student" / "README.md").read_text()
    assert "It started from" in card
    assert "Before training its loss on validation was" in card
    page = tmp_path / "both.html"
    code, _ = run_kdscale("report", str(finished_run.output), str(output), "--to", str(page))
    assert code == 0
    assert "Loss before training" in page.read_text()
    code, _ = run_kdscale("status", str(output))
    assert code == 0


def test_running_again_makes_nothing(
    finished_run: FinishedRun, continued: tuple[Path, Results]
) -> None:
    code, log = run_kdscale("run", str(continued[0].parent / "load.yaml"))
    assert code == 0
    assert log.count("complete, skipped") == 6
    code, log = run_kdscale("plan", str(continued[0].parent / "load.yaml"))
    assert code == 0


def test_a_student_of_another_tokenizer_is_refused_before_a_worker_starts(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    other = tmp_path / "student"
    shutil.copytree(finished_run.output / "student", other)
    tree = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tree["model"]["merges"] = tree["model"]["merges"][:-40]
    (other / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    code, log = run_kdscale("run", str(config_of(finished_run, tmp_path, other)))
    assert code == 2
    assert "has another tokenizer than the run" in log
    assert "distill: started" not in log
