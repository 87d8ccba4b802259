"""`kdscale export` on a run that went through all stages."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.runs import FinishedRun, run_kdscale

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]


def test_a_finished_runs_student_is_exported(finished_run: FinishedRun, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    formats = ("--format", "hf", "--format", "onnx", "--format", "onnx-int8")
    code, log = run_kdscale("export", str(finished_run.output), "--to", str(folder), *formats)
    assert code == 0, log[-6000:]
    assert "onnx-int8" in log
    facts = json.loads((folder / "export.json").read_text())["formats"]
    assert facts["hf"]["max_difference"] == 0
    assert facts["onnx"]["max_difference"] <= facts["onnx"]["tolerance"]
    assert facts["onnx-int8"]["agreement_top1"] > 0.9
    own, copy = (
        AutoModelForCausalLM.from_pretrained(each).state_dict()
        for each in (finished_run.output / "student", folder)
    )
    assert all(torch.equal(own[name], copy[name]) for name in own)
    card = (finished_run.output / "student" / "README.md").read_text()
    assert (folder / "README.md").read_text() == card
    code, log = run_kdscale("export", str(finished_run.output), "--to", str(folder))
    assert code == 2
    assert "is not an empty folder" in log


def test_a_teacher_is_exported_with_a_card_of_its_own(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    command = ("export", str(finished_run.output), "--to", str(folder), "--model", "teacher")
    code, log = run_kdscale(*command)
    assert code == 0, log[-6000:]
    assert "the teacher of a distillation run" in (folder / "README.md").read_text()
