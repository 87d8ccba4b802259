"""What a submission asks for: entrypoint, variables, id, and paths that mean the same elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdscale.config import RunConfig, parse_config
from kdscale.errors import KdscaleError
from kdscale.submit import plan_job

LOADED: dict[str, Any] = {
    "name": "demo",
    "output": "runs/demo",
    "data": {
        "train": {"kind": "text", "path": "corpus/*.txt"},
        "tokenizer": {"kind": "teacher"},
        "evaluate": {
            "web": {"kind": "jsonl", "path": "s3://bucket/web.jsonl"},
            "wiki": {"kind": "huggingface", "path": "wikitext"},
            "mine": {"kind": "huggingface", "path": "sets/mine"},
        },
    },
    "teacher": {"load": "org/model"},
    "cache": {"reuse": "../other/cache/0123"},
    "distill": {
        "student": {"teacher_layers": [0, 2]},
        "training": {"steps": 2, "batch_rows": 2},
    },
}


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate({**LOADED, **changes})


def test_entrypoint_carries_the_stage() -> None:
    assert plan_job(config()).entrypoint == "python jobs/run.py job/config.yaml"
    only = plan_job(config(), only="cache").entrypoint
    assert only == "python jobs/run.py job/config.yaml --only cache"
    start = plan_job(config(), start="distill").entrypoint
    assert start == "python jobs/run.py job/config.yaml --from distill"


def test_job_gets_time_to_stop_and_what_the_user_sets() -> None:
    plan = plan_job(config(), environment=["WANDB_MODE=offline", "A=b=c", "EMPTY="])
    assert plan.environment == {
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "PYTHONUNBUFFERED": "1",
        "WANDB_MODE": "offline",
        "A": "b=c",
        "EMPTY": "",
    }
    shorter = plan_job(config(), environment=["RAY_JOB_STOP_WAIT_TIME_S=5"])
    assert shorter.environment["RAY_JOB_STOP_WAIT_TIME_S"] == "5"


def test_summary_masks_given_values() -> None:
    summary = plan_job(config(), environment=["A=hidden"]).summary(["A"])
    assert summary["runtime_env"]["env_vars"]["A"] == "***"
    assert summary["runtime_env"]["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert "hidden" not in yaml.safe_dump(summary)


def test_secrets_in_variables_are_pointed_out() -> None:
    notes = plan_job(config(), environment=["WANDB_API_KEY=x", "PLAIN=y"]).notes
    assert [note.split()[0] for note in notes if "secret" in note] == ["WANDB_API_KEY"]


@pytest.mark.parametrize("text", ["NAME", "=x", "1A=x", "A B=x", ""])
def test_malformed_variable(text: str) -> None:
    with pytest.raises(KdscaleError, match="NAME=VALUE"):
        plan_job(config(), environment=[text])


def test_id_is_made_from_the_name_or_taken() -> None:
    first, second = plan_job(config()).submission_id, plan_job(config()).submission_id
    assert first.startswith("demo-")
    assert first != second
    assert plan_job(config(), submission_id="nightly.3").submission_id == "nightly.3"


@pytest.mark.parametrize("bad", ["", "a/b", "-x", "a b", "x" * 129])
def test_malformed_id(bad: str) -> None:
    with pytest.raises(KdscaleError, match="job's id"):
        plan_job(config(), submission_id=bad)


def test_relative_paths_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "somewhere" / "sets" / "mine").mkdir(parents=True)
    plan = plan_job(config(), folder=tmp_path / "somewhere")
    made = parse_config(plan.config_text)
    assert made.output == f"{tmp_path}/somewhere/runs/demo"
    assert made.cache.reuse == f"{tmp_path}/other/cache/0123"
    assert made.data.train.path == f"{tmp_path}/somewhere/corpus/*.txt"
    # A folder of that name is there, so it is no name on the hub.
    assert made.data.evaluate["mine"].path == f"{tmp_path}/somewhere/sets/mine"
    named = [note.split()[0] for note in plan.notes]
    assert named == ["output", "cache.reuse", "data.train.path", "data.evaluate.mine.path"]
    assert all("storage that all nodes share" in note for note in plan.notes)


def test_urls_and_hub_names_stay(tmp_path: Path) -> None:
    plan = plan_job(config(output="s3://bucket/run"), folder=tmp_path)
    made = parse_config(plan.config_text)
    assert made.output == "s3://bucket/run"
    assert made.teacher.load == "org/model"
    assert made.data.evaluate["web"].path == "s3://bucket/web.jsonl"
    assert made.data.evaluate["wiki"].path == "wikitext"


def test_teacher_folder_becomes_absolute(tmp_path: Path) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    made = parse_config(plan_job(config(), folder=tmp_path).config_text)
    assert made.teacher.load == f"{tmp_path}/org/model"
    dotted = config(teacher={"load": "./absent"})
    made = parse_config(plan_job(dotted, folder=tmp_path).config_text)
    assert made.teacher.load == f"{tmp_path}/absent"


def test_everything_else_of_the_config_is_unchanged() -> None:
    given = config(output="s3://b/r", data=LOADED["data"] | {"train": {"kind": "python-stdlib"}})
    given = given.model_copy(update={"cache": given.cache.model_copy(update={"reuse": None})})
    plan = plan_job(given)
    assert parse_config(plan.config_text) == given
    assert plan.metadata == {"job_name": "demo", "output": "s3://b/r"}
