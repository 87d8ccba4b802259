"""Other models as rows of the evaluation: what they must be, and that they are scored."""

import json
import shutil
from pathlib import Path

import pytest

from kdscale.config import parse_config
from kdscale.errors import KdscaleError
from kdscale.evaluate.external_models import external_references
from kdscale.evaluate.worker import MEASURED_KEY, EvaluateJob
from kdscale.models.hf_folder import read_marker
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.finished_run import FinishedRun
from kdscale.store import open_store
from tests.unit.evaluate.finished import make_finished_run


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_finished_run(folder)
    return folder / "output"


def with_models(output: Path, **models: str) -> FinishedRun:
    run = FinishedRun(open_store(str(output)))
    evaluate = run.config.evaluate.model_copy(update={"models": models, "teacher_sharding": "none"})
    run.config = run.config.model_copy(update={"evaluate": evaluate})
    return run


def test_another_folder_becomes_a_row(output: Path) -> None:
    run = with_models(output, copy=str(output / "student"))
    others, aligned = external_references(run.config, run.prepared())
    assert not aligned
    teacher, student = (read_marker(run.output.child(n)) for n in ("teacher", "student"))
    assert teacher is not None
    assert student is not None
    job = EvaluateJob(
        config=run.config,
        output=run.output,
        prepared=run.output.child("prepared/rows"),
        teacher=teacher,
        models={"student": student, **others},
    )
    job.run()
    found = json.loads(run.output.get(MEASURED_KEY))["models"]
    assert list(found) == ["teacher", "student", "copy"]
    assert found["copy"]["parameters"] == student.parameters
    scores = found["copy"]["domains"]["validation"]
    assert scores == found["student"]["domains"]["validation"]
    assert scores["kl_teacher_student"] > 0
    assert 0.25 <= scores["temperature"] <= 4
    assert scores["ece_scaled"] != scores["ece"]


def test_another_tokenizer_is_refused(output: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(output / "student", tmp_path / "other")
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    vocabulary = tree["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tree))
    run = with_models(output, other=str(folder))
    with pytest.raises(KdscaleError, match="another tokenizer") as caught:
        external_references(run.config, run.prepared())
    assert "--model other=" in caught.value.fix


def test_a_missing_folder_ends_the_run_at_once(output: Path) -> None:
    run = RunArtifacts(with_models(output, other=str(output / "nowhere")).config)
    with pytest.raises(KdscaleError, match="nowhere"):
        run.compared  # noqa: B018


def test_names_of_the_runs_own_models_are_taken(output: Path) -> None:
    text = (output / "config.resolved.yaml").read_text()
    with pytest.raises(KdscaleError, match="a model of this name"):
        parse_config(text, ["evaluate.models={student: x}"])
