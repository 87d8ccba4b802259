"""`kdscale doctor`: its lines, its JSON and its exit code."""

import json

import pytest

from kdscale import doctor
from kdscale.cli import main
from kdscale.doctor import Check

GOOD = Check("ok", "ray", "2.60.0")
BAD = Check("failed", "ninja", "not on PATH", "pip install ninja")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_exit_code_and_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(doctor, "run_checks", lambda *a: asked.append(a) or iter([GOOD]))
    assert run("doctor", "--output", "s3://b/run", "--cluster", "auto") == 0
    assert asked == [("s3://b/run", "auto")]
    assert capsys.readouterr().out == "ok       ray             2.60.0\n"
    monkeypatch.setattr(doctor, "run_checks", lambda *_: iter([GOOD, BAD]))
    assert run("doctor") == 1
    assert "fix: pip install ninja" in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run_checks", lambda *_: iter([GOOD, BAD]))
    assert run("doctor", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] is True
    assert found["checks"][1] == {
        "word": "failed",
        "name": "ninja",
        "value": "not on PATH",
        "fix": "pip install ninja",
    }


def test_the_cluster_of_the_environment_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdscale.doctor import cluster, machine

    asked = []
    monkeypatch.setattr(machine, "LIBRARIES", ())
    monkeypatch.setattr(doctor, "guarded", lambda each: GOOD)
    monkeypatch.setattr(cluster, "checks", lambda address: asked.append(address) or iter([GOOD]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    list(doctor.run_checks())
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    list(doctor.run_checks())
    list(doctor.run_checks(cluster="auto"))
    assert asked == ["10.0.0.1:6379", "auto"]
