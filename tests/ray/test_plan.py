"""A plan beside a real run: predicted bytes, and a calibration by real workers."""

import json
import shutil
from pathlib import Path

import pytest

from kdscale.cache.maintain.inspect import inspect
from kdscale.config import load_config
from kdscale.plan.calibration import Calibration
from kdscale.plan.hardware import find_hardware
from kdscale.plan.inputs import read_inputs
from kdscale.plan.plan import make_plan
from kdscale.store import open_store
from tests.runs import FinishedRun, run_kdscale, tiny_config, write_config

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("shared_ray"),
]


def test_bytes_and_rows_are_those_of_the_finished_run(finished_run: FinishedRun) -> None:
    plan = make_plan(read_inputs(load_config(finished_run.config), find_hardware("cpu")))
    (folder,) = (finished_run.output / "cache").iterdir()
    facts = inspect(open_store(str(folder)))
    tokens = plan.inputs.tokens
    assert "prepared data" in tokens.source
    assert (tokens.captured_rows, tokens.captured) == (facts["rows"], facts["positions"])
    assert plan.caches[0].in_memory_position == facts["payload_bytes_per_position"]
    # How well a payload packs depends on the teacher: without a calibration, only its size is sure.
    assert plan.caches[0].stored == pytest.approx(facts["bytes"], rel=0.5)
    marker = json.loads((finished_run.output / "student/kdscale.json").read_text())
    assert plan.inputs.student.parameters == marker["model"]["parameters"]


def test_a_calibration_with_the_teacher_at_hand_knows_its_bytes(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    for part in ("prepared", "teacher"):
        shutil.copytree(finished_run.output / part, output / part)
    path = write_config(tmp_path / "tiny.yaml", tiny_config(finished_run.corpus, str(output)))
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    code, text = run_kdscale("plan", str(path), "--calibrate", "--json", env=env)
    assert code == 0, text
    found = json.loads(text.splitlines()[-1])
    (folder,) = (finished_run.output / "cache").iterdir()
    facts = inspect(open_store(str(folder)))
    assert found["calibration"]["stored_payload"] is not None
    assert found["caches"][0]["stored"] == pytest.approx(facts["bytes"], rel=0.15)


def test_a_calibration_is_measured_kept_and_used(finished_run: FinishedRun, tmp_path: Path) -> None:
    config = tiny_config(finished_run.corpus, str(tmp_path / "output"))
    path = write_config(tmp_path / "tiny.yaml", config)
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    code, text = run_kdscale("plan", str(path), "--calibrate", env=env)
    assert code == 0, text
    assert "measured on cpu with 2 workers" in text
    kept = Calibration.model_validate_json((tmp_path / "output/calibration.json").read_text())
    assert (tmp_path / "cache/kdscale/calibration-cpu.json").is_file()
    assert kept.base_bytes > 100 << 20
    assert kept.teacher_flops is not None
    # Nothing is left of the measurement, and no stage has run.
    left = {found.name for found in (tmp_path / "output").iterdir()}
    assert left == {"calibration.json"}
    code, text = run_kdscale("plan", str(path), "--json", env=env)
    assert code == 0, text
    assert json.loads(text.splitlines()[-1])["calibration"] == kept.model_dump()
