"""`kdscale submit --dry-run` and the answers that need no cluster."""

import socket
from pathlib import Path

import pytest
import yaml

from kdscale.cli import main

CONFIG = Path(__file__).parents[3] / "jobs" / "configs" / "quickstart.yaml"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_dry_run_shows_the_job_and_contacts_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a dry run opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    arguments = ["--dry-run", "--address", "http://head:8265", "--env", "A=not-for-eyes"]
    arguments += ["--set", "distill.training.steps=7", "--from", "cache", "--name", "nightly"]
    assert run("submit", str(CONFIG), *arguments) == 0
    out, err = capsys.readouterr()
    plan = yaml.safe_load(out)
    assert plan["submission_id"] == "nightly"
    assert plan["entrypoint"] == "python jobs/run.py job/config.yaml --from cache"
    assert plan["env_vars"]["A"] == "***"
    assert plan["working_dir"] == str(CONFIG.parents[2])
    assert {".git", "wandb", "/runs"} <= set(plan["excludes"])
    assert plan["config"]["distill"]["training"]["steps"] == 7
    assert plan["config"]["output"] == f"{tmp_path}/runs/quickstart"
    assert f"output is {tmp_path}/runs/quickstart" in err
    assert "not-for-eyes" not in out + err


def test_dry_run_validates(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("submit", str(CONFIG), "--dry-run", "--set", "distill.training.steps=0") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "distill.training.steps" in err


@pytest.mark.parametrize("command", [("status", "x"), ("logs", "x"), ("stop", "x"), ("list",)])
def test_unreachable_cluster(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        # Bound but not listening: nothing else can answer at this port.
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert run(*command, "--address", url) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: No Ray job server answers at {url}" in err


def test_dry_run_for_kubernetes_prints_the_rayjob(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["submit", str(CONFIG), "--dry-run", "--backend", "kuberay", "--name", "nightly"]
    assert run(*arguments, "--kube", "absent.yaml") == 2
    assert "'absent.yaml' cannot be read" in capsys.readouterr().err
    arguments += ["--set", "output=s3://bucket/run"]
    assert run(*arguments) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    assert (job["kind"], job["spec"]["jobId"]) == ("RayJob", "nightly")
    monkeypatch.setenv("MINE", "not-for-eyes")
    assert run(*arguments, "--secret", "MINE") == 2
    out, err = capsys.readouterr()
    assert "MINE are in no Kubernetes secret" in err
    assert "not-for-eyes" not in out + err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backend", "slurm"), "no back end 'slurm'"),
        (("--backend", "local"), "ray start --head"),
        (("--timeout", "5m"), "--timeout needs --follow"),
        (("--grace", "soon"), "'soon' is not a length of time"),
        (("--env", "HF_TOKEN=not-for-eyes"), "--secret HF_TOKEN"),
        (("--secret", "ABSENT_TOKEN"), "ABSENT_TOKEN is not set here"),
        (("--student", "a.yaml", "--only", "cache"), "--student goes with neither"),
        (("--from", "distill", "--until", "cache"), "--until cache comes before"),
    ],
)
def test_usage_is_refused_before_anything_happens(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert run("submit", str(CONFIG), *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in " ".join(err.replace("│", " ").split())
    assert "not-for-eyes" not in err
