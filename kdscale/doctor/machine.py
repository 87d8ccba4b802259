"""What a run needs of this machine, checked one thing at a time, each with the fix.

Versions are held against the bounds that the installed package declares. Only what no run can do
without fails; the rest warns.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdscale.errors import KdscaleError

_GIB = 1024**3
_LIBRARIES = ("torch", "ray", "deepspeed", "transformers", "wandb")
# Ray keeps its objects in /dev/shm and falls back to the disk, slowly, below a share of the memory.
_SHARED_MEMORY_GIB = 2
# Room for Ray's session, a local copy of a cache and two checkpoints of a small model.
_DISK_GIB = 10


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is empty for what is all right."""

    word: Literal["ok", "warning", "failed"]
    name: str
    value: str
    fix: str = ""


def run_checks(output: str | None = None) -> Iterator[Check]:
    """All checks, in the order in which to mend them; `output` is a run's output to try, if any."""
    yield python_version()
    for name in _LIBRARIES:
        yield library(name)
    for check in (devices, compiler, ninja, shared_memory, disk, ray_address, wandb_mode):
        yield _guarded(check)
    if output is not None:
        yield store(output)


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
    """A C++ compiler: DeepSpeed builds its operators when they are first used."""
    name = os.environ.get("CXX", "c++")
    path = shutil.which(name)
    if path:
        return Check("ok", "C++ compiler", path)
    return Check("failed", "C++ compiler", f"{name} not found", "apt-get install g++ (or set CXX).")


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


def shared_memory() -> Check:
    """/dev/shm, where Ray's object store and gloo live; containers often have 64 MiB."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("ok", "shared memory", "no /dev/shm on this system")
    size = shutil.disk_usage(folder).total / _GIB
    if size >= _SHARED_MEMORY_GIB:
        return Check("ok", "shared memory", f"{size:.1f} GiB")
    return Check(
        "warning",
        "shared memory",
        f"{size:.1f} GiB",
        f"Start the container with --shm-size={_SHARED_MEMORY_GIB}g or more.",
    )


def disk() -> Check:
    """Free space where Ray and the local caches write."""
    import tempfile

    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / _GIB
    if free >= _DISK_GIB:
        return Check("ok", "disk", f"{free:.0f} GiB free in {folder}")
    return Check(
        "warning",
        "disk",
        f"{free:.1f} GiB free in {folder}",
        f"Free {_DISK_GIB} GiB there, or set TMPDIR to a larger disk.",
    )


def ray_address() -> Check:
    """Where `kdscale run` and `kdscale submit` will go."""
    set_names = [name for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if os.environ.get(name)]
    if not set_names:
        return Check("ok", "Ray address", "not set: `run` starts Ray on this machine")
    values = [f"{name}={os.environ[name]}" for name in set_names]
    if len({value.partition("=")[2] for value in values}) == 1:
        return Check("ok", "Ray address", ", ".join(values))
    return Check(
        "warning",
        "Ray address",
        ", ".join(values),
        "`submit` obeys the first, `run` the second: unset one of them.",
    )


def wandb_mode() -> Check:
    """What `tracking.wandb: auto` comes to here, as far as the environment decides it."""
    mode = os.environ.get("WANDB_MODE")
    if mode is not None:
        return Check("ok", "W&B", f"WANDB_MODE={mode}")
    if os.environ.get("WANDB_API_KEY"):
        return Check("ok", "W&B", "online (WANDB_API_KEY is set)")
    return Check("ok", "W&B", "online after `wandb login`, offline otherwise")


def store(url: str) -> Check:
    """Whether a run's output can be written, read and deleted."""
    from kdscale.store import open_store

    try:
        opened = open_store(url)
        opened.check()
    except KdscaleError as error:
        return Check("failed", "store", error.problem, error.fix)
    return Check("ok", "store", str(opened))


def _guarded(check: Callable[[], Check]) -> Check:
    """The check's finding; a library that cannot even be imported is a finding too."""
    try:
        return check()
    except ImportError as error:
        name = check.__name__.replace("_", " ")
        return Check("failed", name, str(error), "Mend the library named, then run this again.")
