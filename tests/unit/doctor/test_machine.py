"""Each check of this machine in a state that is right and in one that is wrong."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

from kdscale import doctor
from kdscale.doctor import machine
from kdscale.doctor.machine import GIB, Check


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", machine.LIBRARIES)
def test_installed_versions_are_within_bounds(name: str) -> None:
    found = machine.library(name)
    assert (found.word, found.value) == ("ok", importlib.metadata.version(name))


def test_version_out_of_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.8.1")
    found = machine.library("torch")
    assert found.word == "failed"
    assert found.value.startswith("2.8.1, not ")
    assert found.fix.startswith("pip install 'torch")
    assert ">=2.9" in found.fix


def test_library_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert machine.library("ray").value == "not installed"
    assert machine.library("ray").word == "failed"


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.python_version().word == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    found = machine.python_version()
    assert (found.word, found.value) == ("failed", "3.10.4")


def test_the_compiler_here_builds_an_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    found = machine.compiler()
    assert found.word == "ok", found
    assert found.value.endswith("builds an extension")


def test_build_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert [machine.compiler().word, machine.ninja().word] == ["failed", "failed"]
    program(tmp_path / "c++", "echo 'x.cpp:2: fatal error: Python.h: No such file' >&2; exit 1")
    assert machine.compiler().value == (
        f"{tmp_path}/c++ builds nothing: x.cpp:2: fatal error: Python.h: No such file"
    )
    program(tmp_path / "ninja", "")
    assert machine.ninja() == Check("ok", "ninja", str(tmp_path / "ninja"))


def test_limits_at_their_bounds() -> None:
    assert machine.shared_memory(None).word == "ok"
    assert machine.shared_memory(2 * GIB).word == "ok"
    assert machine.shared_memory(2 * GIB - 1).word == "warning"
    assert machine.shared_memory(64 * 2**20).value == "0.1 GiB"
    assert machine.disk(10 * GIB, "/tmp").value == "10 GiB free in /tmp"
    assert machine.disk(10 * GIB - 1, "/tmp").word == "warning"
    assert machine.open_files(4096).word == "ok"
    assert machine.open_files(1024).word == "warning"


def test_this_machine_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(machine, "compiler", lambda: Check("ok", "C++ compiler", ""))
    names = [found.name for found in doctor.run_checks()]
    assert names == [
        *("python", *machine.LIBRARIES, "devices", "C++ compiler", "ninja", "CUDA toolkit"),
        *("shared memory", "disk", "open files", "Ray address", "W&B"),
    ]


def test_broken_library_is_a_finding() -> None:
    def devices() -> Check:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    found = doctor.guarded(devices)
    assert (found.word, found.name) == ("failed", "devices")
    assert "libcudart" in found.value
