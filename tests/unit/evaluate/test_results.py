"""results.json: the gap, the schema, non-finite numbers, what it says about the machine."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kdscale.errors import KdscaleError
from kdscale.evaluate.results import (
    build_results,
    environment,
    gap_recovered,
    read_results,
    write_results,
)
from kdscale.store import open_store
from tests.unit.report.sample import sample_results


@pytest.mark.parametrize(
    ("teacher", "student", "baseline", "expected"),
    [
        (3.0, 3.25, 4.0, 0.75),
        (3.0, 4.0, 4.0, 0.0),
        (3.0, 4.5, 4.0, -0.5),
        (3.0, 2.5, 4.0, 1.5),
        (3.0, 3.25, None, None),
        (3.0, 3.25, 3.0, None),
        (3.0, 3.25, 2.0, None),
        (math.nan, 3.25, 4.0, None),
        (3.0, math.inf, 4.0, None),
    ],
)
def test_gap_recovered(teacher: Any, student: float, baseline: float | None, expected: Any) -> None:
    assert gap_recovered(teacher, student, baseline) == expected


def test_gaps_are_worked_out_for_each_domain() -> None:
    gaps = sample_results()["gap_recovered"]
    assert gaps["validation"] == pytest.approx((3.5233 - 3.3821) / (3.5233 - 3.0512))
    assert gaps["python-docs"] == pytest.approx((4.8018 - 4.6902) / (4.8018 - 4.4107))
    no_baseline = sample_results(("teacher", "student"))["gap_recovered"]
    assert no_baseline == {"validation": None, "python-docs": None}
    assert sample_results(("teacher",))["gap_recovered"] == {}


def test_results_come_back_as_written(tmp_path: Path) -> None:
    store, results = open_store(str(tmp_path)), sample_results()
    write_results(store, results)
    assert read_results(store) == results
    assert results["schema_version"] == 2
    assert results["cache"] is not None
    assert dict(results["cache"])["units"] == 8


def test_non_finite_numbers_survive_standard_json(tmp_path: Path) -> None:
    store, results = open_store(str(tmp_path)), sample_results()
    domain = results["models"]["student"]["domains"]["validation"]
    domain["loss"], domain["perplexity"], domain["ece"] = math.nan, math.inf, -math.inf

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not standard JSON")

    write_results(store, results)
    json.loads(store.get("results.json"), parse_constant=refuse)
    back = read_results(store)["models"]["student"]["domains"]["validation"]
    assert math.isnan(back["loss"])
    assert (back["perplexity"], back["ece"]) == (math.inf, -math.inf)


def test_missing_results_name_the_place_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(KdscaleError) as caught:
        read_results(open_store(str(tmp_path)))
    assert str(tmp_path) in caught.value.problem
    assert "kdscale run CONFIG --only evaluate" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "where"),
    [({"schema_version": 1}, "schema_version"), ({"seed": "many"}, "seed"), (None, "the file")],
)
def test_a_file_of_another_schema_is_refused(tmp_path: Path, change: Any, where: str) -> None:
    store = open_store(str(tmp_path))
    text = "{" if change is None else json.dumps({**sample_results(), **change})
    store.put("results.json", text.encode())
    with pytest.raises(KdscaleError, match=where):
        read_results(store)


def test_build_results_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValidationError, match="parameters"):
        build_results(
            run="r",
            output="o",
            models={"teacher": {"parameters": "many", "domains": {}}},  # type: ignore[typeddict-item]  # on purpose
            cache=None,
            seconds={},
            seed=0,
            versions={},
            hardware={},
            config_fingerprint="f",
        )


def test_environment_describes_this_process() -> None:
    versions, hardware = environment()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"kdscale", "torch", "transformers", "ray"} <= set(versions)
    assert all(versions.values())
    assert hardware["cpu"]
    assert hardware["cores"] >= 1
    assert hardware["memory_bytes"] > 2**28
    assert isinstance(hardware["gpus"], list)


def test_reading_results_and_reporting_need_no_torch() -> None:
    code = (
        "import sys, kdscale.evaluate.results, kdscale.report\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'transformers', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
