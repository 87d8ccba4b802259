"""The quickstart on a local disk and on a real S3 server: minutes each, marked slow."""

import json
from pathlib import Path

import pytest

from kdscale.store import open_store
from tests.runs import run_program
from tests.s3 import S3Server

QUICKSTART = Path(__file__).parents[2] / "jobs" / "configs" / "quickstart.yaml"

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_the_quickstart_beats_its_baseline_and_gives_the_same_on_s3(
    tmp_path: Path, s3_env: S3Server
) -> None:
    results = {}
    for output in (str(tmp_path / "quickstart"), f"{s3_env.url}/quickstart"):
        code, log = run_program("run", str(QUICKSTART), "--set", f"output={output}", env=s3_env.env)
        assert code == 0, log[-4000:]
        results[output] = json.loads(open_store(output).get("results.json"))
    local, remote = results.values()
    assert remote["models"] == local["models"]
    student, baseline, teacher = (
        local["models"][name]["domains"]["validation"]
        for name in ("student", "baseline", "teacher")
    )
    assert teacher["loss"] < student["loss"] < baseline["loss"]
    assert student["kl_teacher_student"] < baseline["kl_teacher_student"]
    assert local["gap_recovered"]["validation"] > 0.2
    code, log = run_program("run", str(QUICKSTART), "--set", f"output={output}", env=s3_env.env)
    assert code == 0
    assert log.count("complete, skipped") == 6
