"""GPUs that torch does not open, by what a program called nvidia-smi prints, and nvcc's version."""

from pathlib import Path

import pytest
import torch

from kdscale.doctor import cluster, gpus, probes
from tests.unit.doctor.test_machine import program

L4 = "echo '{driver}, NVIDIA L4'; echo '{driver}, NVIDIA L4'"
FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


@pytest.fixture(autouse=True)
def empty_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def smi(folder: Path, text: str) -> None:
    program(folder / "nvidia-smi", text)


def test_a_machine_without_gpus_is_all_right(tmp_path: Path) -> None:
    found = gpus.devices()
    assert found.word == "ok"
    assert found.value.endswith("no GPU: gloo, float32, workers.gpus 0")
    smi(tmp_path, "echo 'No devices were found'; exit 6")
    assert gpus.devices() == found


def test_gpus_beside_a_torch_for_cpus_are_named(tmp_path: Path) -> None:
    smi(tmp_path, L4.format(driver="580.65.06"))
    found = gpus.devices()
    assert (found.word, found.name) == ("warning", "devices")
    assert found.value == "2 x NVIDIA L4 with driver 580.65.06, but torch is built without CUDA"


@pytest.mark.parametrize(
    ("driver", "cuda", "least"),
    [("570.86.15", "13.0", 580), ("470.57.02", "12.8", 525), ("418.40", "11.8", 450)],
)
def test_a_driver_older_than_torchs_cuda_fails(
    driver: str, cuda: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path, L4.format(driver=driver))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = gpus.devices()
    assert found.word == "failed"
    assert found.value == (
        f"2 x NVIDIA L4 with driver {driver}, too old for torch's CUDA {cuda}, which needs {least} "
        "or later"
    )
    assert f"driver of {least} or later" in found.fix
    assert f"built for CUDA {int(cuda[:2]) - 1}" in found.fix


def test_a_gpu_that_torch_does_not_open_for_another_reason_fails_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path, L4.format(driver="580.65.06"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = gpus.devices()  # this torch is built for CPUs, whatever its version says
    assert found.word == "failed"
    assert "which torch (CUDA 13.0) does not open: Torch not compiled" in found.value
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = gpus.devices()
    assert (hidden.word, "hides from torch" in hidden.value) == ("warning", True)


def test_an_nvidia_smi_that_fails_is_no_machine_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path, f'echo "{FAILED}"; exit 9')
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = gpus.devices()
    assert (found.word, FAILED in found.value) == ("failed", True)
    smi(tmp_path, "exit 12")
    assert "exit code 12" in gpus.devices().value
    monkeypatch.setattr(probes, "_SMI_SECONDS", 0.2)
    smi(tmp_path, "exec sleep 5")
    assert "timed out" in gpus.devices().value


def test_the_driver_of_a_clusters_node_is_held_against_its_torch(tmp_path: Path) -> None:
    smi(tmp_path, L4.format(driver="570.86.15"))
    facts = probes.facts() | {"cuda": "13.0", "shared_memory": None, "disk_free": 2**40}
    versions, *_, driver = cluster.judge("10.0.0.7", facts, facts["versions"])
    assert versions.word == "ok"
    assert (driver.word, driver.name) == ("failed", "node 10.0.0.7")
    assert driver.value.startswith("devices: 2 x NVIDIA L4 with driver 570.86.15, too old")
    facts["cuda"] = "12.8"
    names = [found.value for found in cluster.judge("10.0.0.7", facts, facts["versions"])]
    assert not any("driver" in name for name in names)


def test_cuda_toolkit_beside_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpus.judge_cuda(None).word == "ok"
    missing = gpus.judge_cuda("12.8")
    assert (missing.word, "no nvcc" in missing.value) == ("warning", True)
    program(tmp_path / "bin" / "nvcc", "echo 'Cuda compilation tools, release 12.4, V12.4.131'")
    assert gpus.judge_cuda("12.8").word == "ok"
    other = gpus.judge_cuda("13.0")
    assert (other.word, "12.4" in other.value) == ("warning", True)
    assert "CUDA toolkit 13.0" in other.fix
