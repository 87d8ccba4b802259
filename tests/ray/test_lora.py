"""A student's adapters through a whole run: trained, evaluated, reported, exported."""

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from kdscale.run.finished_run import FinishedRun as Output
from kdscale.store import open_store
from tests.runs import FinishedRun, run_kdscale, tiny_config, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


def test_adapters_go_through_a_whole_run(finished_run: FinishedRun, tmp_path: Path) -> None:
    first, output = finished_run, tmp_path / "output"
    teacher = str(first.output / "teacher")
    config = tiny_config(
        first.corpus,
        str(output),
        base=str(first.output),
        distill__student={"load": teacher, "lora": {"r": 4, "alpha": 8}},
        distill__training__steps=20,
        distill__training__zero={"stage": 2},
        evaluate={"speed": None, "samples": None},
    )
    code, log = run_kdscale("run", str(write_config(tmp_path / "run.yaml", config)))
    assert code == 0, log[-6000:]
    assert "of adapters, which alone are trained" in log
    student = output / "student"
    assert not (student / "model.safetensors").exists()
    assert not (student / "base").exists()
    base = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    models = json.loads((output / "results.json").read_text())["models"]
    assert models["student"]["parameters"] == base.num_parameters()
    losses = {name: each["domains"]["validation"]["loss"] for name, each in models.items()}
    assert losses["student"] != losses["teacher"] == pytest.approx(losses["before"], rel=1e-5)
    assert (student / "README.md").read_text().count("PeftModel") == 2

    folder = tmp_path / "exported"
    code, log = run_kdscale("export", str(output), "--to", str(folder))
    assert code == 0, log[-6000:]
    named = peft.PeftConfig.from_pretrained(str(student)).base_model_name_or_path
    assert Path(named) == first.output / "teacher"
    adapted = peft.PeftModel.from_pretrained(base, str(student)).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert Output(open_store(str(output))).model_folder("student") == str(student)
