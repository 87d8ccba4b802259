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
        "training": {"steps": 2, "global_batch_size": 2},
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
    plan = plan_job(config(), environment={"WANDB_MODE": "offline", "EMPTY": ""})
    assert plan.environment == {
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "600",
        "PYTHONUNBUFFERED": "1",
        "KDSCALE_LOG_TIMES": "1",
        "WANDB_MODE": "offline",
        "EMPTY": "",
    }
    assert plan.grace_seconds == 600
    longer = plan_job(config(), grace_seconds=3600)
    assert longer.environment["RAY_JOB_STOP_WAIT_TIME_S"] == "3600"


def test_summary_masks_given_values() -> None:
    summary = plan_job(config(), environment={"A": "not-for-eyes"}).summary()
    assert summary["env_vars"]["A"] == "***"
    assert summary["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert "not-for-eyes" not in yaml.safe_dump(summary)


def test_a_plan_names_secrets_and_holds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "not-for-eyes")
    plan = plan_job(config(), secret_names=["HF_TOKEN"])
    assert plan.secrets == ("HF_TOKEN",)
    assert plan.metadata["secrets"] == "HF_TOKEN"
    assert "not-for-eyes" not in repr(plan) + yaml.safe_dump(plan.summary())


def test_the_digest_is_of_what_the_job_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "x")
    base = plan_job(config(), submission_id="a").metadata["digest"]
    assert plan_job(config(), submission_id="b").metadata["digest"] == base
    others = [
        plan_job(config(seed=1)),
        plan_job(config(), only="cache"),
        plan_job(config(), environment={"A": "1"}),
        plan_job(config(), secret_names=["HF_TOKEN"]),
        plan_job(config(), grace_seconds=5),
    ]
    digests = {plan.metadata["digest"] for plan in others}
    assert len(digests) == len(others)
    assert base not in digests


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
    assert named == ["output", "data.train.path", "data.evaluate.mine.path", "cache.reuse"]
    assert all("storage that all nodes share" in note for note in plan.notes)


def test_paths_of_mixtures_and_templates_become_absolute(tmp_path: Path) -> None:
    data: dict[str, Any] = {
        "tokenizer": {"kind": "teacher"},
        "train": [{"kind": "jsonl", "path": "a.jsonl"}, {"kind": "jsonl", "path": "s3://b/c"}],
        "chat": {"template": "mine.jinja"},
    }
    made = parse_config(plan_job(config(data=data), folder=tmp_path).config_text)
    assert [source.path for source in made.data.sources["train"]] == [
        f"{tmp_path}/a.jsonl",
        "s3://b/c",
    ]
    assert made.data.chat is not None
    assert made.data.chat.template == f"{tmp_path}/mine.jinja"
    data["chat"]["template"] = "{{ messages }}"
    text = parse_config(plan_job(config(data=data), folder=tmp_path).config_text)
    assert text.data.chat == made.data.chat.model_copy(update={"template": "{{ messages }}"})


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


def test_models_to_compare_and_the_folder_of_blocks_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    models = {"mine": "models/mine", "dotted": "./absent", "hub": "org/absent"}
    distill = LOADED["distill"] | {"cache_folder": "blocks"}
    plan = plan_job(config(evaluate={"models": models}, distill=distill), folder=tmp_path)
    made = parse_config(plan.config_text)
    assert made.evaluate.models == {
        "mine": f"{tmp_path}/models/mine",
        "dotted": f"{tmp_path}/absent",
        "hub": "org/absent",
    }
    assert made.distill.cache_folder == f"{tmp_path}/blocks"
    notes = dict(note.split(" is ", 1) for note in plan.notes)
    assert notes["evaluate.models.mine"].endswith("on storage that all nodes share.")
    assert notes["distill.cache_folder"] == f"{tmp_path}/blocks: each node keeps its own."
    assert "evaluate.models.hub" not in notes


def test_everything_else_of_the_config_is_unchanged() -> None:
    given = config(output="s3://b/r", data=LOADED["data"] | {"train": {"kind": "python-stdlib"}})
    given = given.model_copy(update={"cache": given.cache.model_copy(update={"reuse": None})})
    plan = plan_job(given)
    assert parse_config(plan.config_text) == given
    assert plan.metadata["job_name"] == "demo"
    assert plan.metadata["output"] == plan.output == "s3://b/r"
