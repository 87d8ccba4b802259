"""Checks of a machine's GPUs: whether torch opens them, and the driver and compiler that it needs.

A driver older than torch's CUDA is seen by nobody else: Ray counts GPUs without torch, so workers
start on them and fail.
"""

import os
import re
import shutil
import subprocess
import warnings
from collections import Counter
from typing import Any

from kdscale.doctor import probes
from kdscale.doctor.machine import Check

LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""Oldest driver for programs of a CUDA major version (NVIDIA, CUDA Compatibility, table 1)."""

_NAME = "devices"


def devices() -> Check:
    """Report the GPUs that torch opens, and the backend that workers will use."""
    import torch

    found = probes.gpus()
    with warnings.catch_warnings():
        # It is said below, with the fix.
        warnings.simplefilter("ignore")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return judge_unopened(found, torch.version.cuda, _problem(0))
    names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(count)}))
    for index in range(count):
        if problem := _problem(index):
            value = f"GPU {index} of {count} x {names} does not open: {problem}"
            return Check("failed", _NAME, value, _fix_of_driver(torch.version.cuda))
    if not torch.distributed.is_nccl_available():
        return Check(
            "failed", _NAME, f"{count} x {names}, no NCCL", "Install a CUDA build of torch."
        )
    driver = f" (driver {found['driver']})" if "driver" in found else ""
    value = f"{count} x {names}{driver}: NCCL, bfloat16, workers.gpus 1"
    return Check("ok", _NAME, value)


def judge_unopened(found: dict[str, Any], cuda: str | None, problem: str) -> Check:
    """Return the finding on a machine where torch sees no GPU.

    `found` is what `probes.gpus` found there, `cuda` the version that torch is built for (None: a
    CPU build), `problem` torch's own words.
    """
    if not found:
        value = f"{os.cpu_count()} CPUs, no GPU: gloo, float32, workers.gpus 0"
        return Check("ok", _NAME, value)
    gpus = _describe(found)
    if cuda is None:
        fix = "Install a CUDA build of torch, unless this machine is to compute on its CPUs."
        return Check("warning", _NAME, f"{gpus}, but torch is built without CUDA", fix)
    if (old := judge_driver(found, cuda)) is not None:
        return old
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and "driver" in found:
        value = f"{gpus}, which CUDA_VISIBLE_DEVICES={hidden!r} hides from torch"
        return Check("warning", _NAME, value, "unset CUDA_VISIBLE_DEVICES to use them.")
    value = f"{gpus}, which torch (CUDA {cuda}) does not open: {problem}"
    return Check("failed", _NAME, value, _fix_of_driver(cuda))


def judge_driver(found: dict[str, Any], cuda: str | None) -> Check | None:
    """Return the finding on GPUs whose driver is too old for torch's `cuda`; None where none is.

    `found` is what `probes.gpus` found.
    """
    least = LEAST_DRIVERS.get(int(cuda.partition(".")[0])) if cuda else None
    major = re.match(r"\d+", found.get("driver", ""))
    if least is None or major is None or int(major[0]) >= least:
        return None
    value = f"{_describe(found)}, too old for torch's CUDA {cuda}, which needs {least} or later"
    return Check("failed", _NAME, value, _fix_of_driver(cuda))


def cuda_toolkit() -> Check:
    """Check nvcc against the CUDA of torch: DeepSpeed builds operators for GPUs with it."""
    import torch

    return judge_cuda(torch.version.cuda)


def judge_cuda(wanted: str | None) -> Check:
    """Check the nvcc of CUDA_HOME, or on PATH, against torch's CUDA version (None: a CPU build)."""
    name = "CUDA toolkit"
    if wanted is None:
        return Check("ok", name, "not needed: torch is built without CUDA")
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which(f"{home}/bin/nvcc") or shutil.which("nvcc")
    fix = f"Install the CUDA toolkit {wanted} and set CUDA_HOME. ZeRO on GPUs needs it, DDP not."
    if nvcc is None:
        return Check("warning", name, f"no nvcc in {home} or on PATH; torch has {wanted}", fix)
    printed = subprocess.run(
        [nvcc, "--version"], capture_output=True, text=True, check=False
    ).stdout
    release = re.search(r"release (\d+)\.(\d+)", printed)
    found = f"{release[1]}.{release[2]}" if release else "unknown"
    # Minor releases of CUDA are compatible with each other; DeepSpeed refuses another major one.
    if found.partition(".")[0] == wanted.partition(".")[0]:
        return Check("ok", name, f"{found} ({nvcc}), torch has {wanted}")
    return Check("warning", name, f"{found} ({nvcc}), but torch has {wanted}", fix)


def _problem(index: int) -> str:
    """Return why torch cannot compute on a GPU; empty where it can."""
    import torch

    try:
        torch.ones(1, device=f"cuda:{index}").sum().item()
    except (RuntimeError, AssertionError) as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return ""


def _describe(found: dict[str, Any]) -> str:
    if "driver" not in found:
        return f"nvidia-smi fails: {found['problem']}"
    names = ", ".join(f"{count} x {name}" for name, count in Counter(found["names"]).items())
    return f"{names} with driver {found['driver']}"


def _fix_of_driver(cuda: str | None) -> str:
    major = int(cuda.partition(".")[0]) if cuda else 0
    least = LEAST_DRIVERS.get(major)
    if least is None:
        return "Install the NVIDIA driver for it (of a container, on its host), and run nvidia-smi."
    return (
        f"Install an NVIDIA driver of {least} or later (of a container, on its host), or a torch "
        f"that is built for CUDA {major - 1}."
    )
