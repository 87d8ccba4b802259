"""What a run needs of this machine: versions, devices, compilers, memory and disk.

Versions are held against the bounds that the installed package declares.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from kdscale.doctor import check, probes
from kdscale.doctor.check import Check

LIBRARIES = ("torch", "ray", "deepspeed", "transformers", "wandb")

# What DeepSpeed's operators are at the least: a shared object that knows Python's C interface.
_SOURCE = """
#include <Python.h>
#include <vector>
extern "C" int size() { return std::vector<int>{1}.size(); }
"""
_COMPILE_SECONDS = 60


def python_version() -> Check:
    """The interpreter, against `requires-python`."""
    from importlib.metadata import metadata

    from packaging.specifiers import SpecifierSet

    wanted = metadata("kdscale")["Requires-Python"]
    version = ".".join(map(str, sys.version_info[:3]))
    if SpecifierSet(wanted).contains(version):
        return Check("ok", "python", version)
    return Check("failed", "python", version, f"Make an environment with Python {wanted}.")


def library(name: str) -> Check:
    """An installed library, against the bounds of our own requirements."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    declared = [Requirement(text) for text in requires("kdscale") or ()]
    wanted = next(item.specifier for item in declared if item.name == name and item.marker is None)
    fix = f"pip install '{name}{wanted}'"
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check("failed", name, "not installed", fix)
    if wanted.contains(found, prereleases=True):
        return Check("ok", name, found)
    return Check("failed", name, f"{found}, not {wanted}", fix)


def devices() -> Check:
    """The GPUs that torch sees, and what workers will speak over."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return Check(
            "ok", "devices", f"{os.cpu_count()} CPUs, no GPU: gloo, float32, workers.gpus 0"
        )
    names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(count)}))
    if not torch.distributed.is_nccl_available():
        return Check(
            "failed", "devices", f"{count} x {names}, no NCCL", "Install a CUDA build of torch."
        )
    return Check("ok", "devices", f"{count} x {names}: NCCL, bfloat16, workers.gpus 1")


def compiler() -> Check:
    """A C++ compiler that works: DeepSpeed builds its operators when they are first used."""
    name = os.environ.get("CXX", "c++")
    path = shutil.which(name)
    fix = "apt-get install g++ python3-dev (or set CXX)."
    if path is None:
        return Check("failed", "C++ compiler", f"{name} not found", fix)
    with tempfile.TemporaryDirectory(prefix="kdscale-doctor-") as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(_SOURCE)
        include = f"-I{sysconfig.get_paths()['include']}"
        done = subprocess.run(
            [path, "-std=c++17", "-shared", "-fPIC", include, str(source), "-o", f"{folder}/p.so"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMPILE_SECONDS,
        )
    if done.returncode:
        error = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        return Check("failed", "C++ compiler", f"{path} builds nothing: {error.strip()}", fix)
    return Check("ok", "C++ compiler", f"{path} builds an extension")


def ninja() -> Check:
    """ninja, which those builds run."""
    # torch looks for the program on PATH, also where the Python package is what brought it.
    path = shutil.which("ninja")
    if path:
        return Check("ok", "ninja", path)
    return Check(
        "failed",
        "ninja",
        "not on PATH",
        f"pip install ninja, and have {Path(sys.executable).parent} on PATH.",
    )


def cuda_toolkit() -> Check:
    """nvcc, against the CUDA of torch: DeepSpeed builds no operator for a GPU without it."""
    import torch

    return judge_cuda(torch.version.cuda)


def judge_cuda(wanted: str | None) -> Check:
    """The nvcc of CUDA_HOME, or on PATH, against torch's CUDA version; None is a CPU build."""
    name = "CUDA toolkit"
    if wanted is None:
        return Check("ok", name, "not needed: torch is built without CUDA")
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which(f"{home}/bin/nvcc") or shutil.which("nvcc")
    fix = f"Install the CUDA toolkit {wanted} and set CUDA_HOME. ZeRO on GPUs needs it, DDP not."
    if nvcc is None:
        return Check("warning", name, f"no nvcc in {home} or on PATH; torch has {wanted}", fix)
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    found = f"{release[1]}.{release[2]}" if release else "unknown"
    # Minor releases of CUDA are compatible with each other; DeepSpeed refuses another major one.
    if found.partition(".")[0] == wanted.partition(".")[0]:
        return Check("ok", name, f"{found} ({nvcc}), torch has {wanted}")
    return Check("warning", name, f"{found} ({nvcc}), but torch has {wanted}", fix)


def shared_memory() -> Check:
    """/dev/shm."""
    return check.shared_memory(probes.shared_memory())


def disk() -> Check:
    """Free space where Ray and the local caches write."""
    return check.disk(*probes.disk())


def open_files() -> Check:
    """The limit of this process."""
    return check.open_files(probes.open_files())
