"""`kdscale doctor`: each check in a state that is right and in one that is wrong."""

import importlib.metadata
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from kdscale import doctor
from kdscale.cli import main

Usage = namedtuple("Usage", "total used free")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.mark.parametrize("name", ["torch", "ray", "deepspeed", "transformers", "wandb"])
def test_installed_versions_are_within_bounds(name: str) -> None:
    check = doctor.library(name)
    assert (check.word, check.value) == ("ok", importlib.metadata.version(name))


def test_version_out_of_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.8.1")
    check = doctor.library("torch")
    assert check.word == "failed"
    assert check.value.startswith("2.8.1, not ")
    assert check.fix.startswith("pip install 'torch")
    assert ">=2.9" in check.fix


def test_library_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert doctor.library("ray").value == "not installed"
    assert doctor.library("ray").word == "failed"


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.python_version().word == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    check = doctor.python_version()
    assert (check.word, check.value) == ("failed", "3.10.4")


def test_build_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert [doctor.compiler().word, doctor.ninja().word] == ["failed", "failed"]
    for name in ("c++", "ninja"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    assert doctor.compiler() == doctor.Check("ok", "C++ compiler", str(tmp_path / "c++"))
    assert doctor.ninja() == doctor.Check("ok", "ninja", str(tmp_path / "ninja"))


def test_small_memory_and_disk_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 * 2**20, 0, 2**30))
    assert doctor.shared_memory().word == "warning"
    assert doctor.shared_memory().value == "0.1 GiB"
    assert doctor.disk().word == "warning"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(8 * 2**30, 0, 50 * 2**30))
    assert (doctor.shared_memory().word, doctor.shared_memory().value) == ("ok", "8.0 GiB")
    assert doctor.disk().word == "ok"


def test_ray_addresses_that_differ_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert doctor.ray_address().word == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert doctor.ray_address().value == "RAY_ADDRESS=10.0.0.1:6379"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://10.0.0.2:8265")
    assert doctor.ray_address().word == "warning"


def test_wandb_mode_never_shows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "abc123")
    assert doctor.wandb_mode().value == "online (WANDB_API_KEY is set)"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert doctor.wandb_mode().value == "WANDB_MODE=offline"


def test_broken_library_is_a_finding() -> None:
    def devices() -> doctor.Check:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    check = doctor._guarded(devices)
    assert (check.word, check.name) == ("failed", "devices")
    assert "libcudart" in check.value


def test_store(tmp_path: Path) -> None:
    assert doctor.store(str(tmp_path / "out")).word == "ok"
    (tmp_path / "file").write_text("")
    check = doctor.store(str(tmp_path / "file" / "out"))
    assert check.word == "failed"
    assert check.fix


def test_exit_code_and_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = doctor.Check("ok", "ray", "2.60.0")
    monkeypatch.setattr(doctor, "run_checks", lambda _: iter([good]))
    assert run("doctor") == 0
    assert capsys.readouterr().out == "ok       ray            2.60.0\n"
    bad = doctor.Check("failed", "ninja", "not on PATH", "pip install ninja")
    monkeypatch.setattr(doctor, "run_checks", lambda _: iter([good, bad]))
    assert run("doctor") == 1
    assert "fix: pip install ninja" in capsys.readouterr().out
