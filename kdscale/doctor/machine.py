"""Checks of this machine: versions, compilers, limits, and the services that it reaches.

Versions are held against the bounds that the installed package declares. The limits are those that
every node of a cluster is held against.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from kdscale.tracking.wandb_run import wandb_target

LIBRARIES = ("torch", "ray", "deepspeed", "transformers", "wandb")
GIB = 1024**3

# Ray keeps its objects in /dev/shm and falls back to the disk, slowly, below a share of the memory.
_SHARED_MEMORY_GIB = 2
# Room for Ray's session, a local copy of a cache and two checkpoints of a small model.
_DISK_GIB = 10
# Ray holds a few for every worker of the cluster, and a reader one for every block it has mapped.
_OPEN_FILES = 4096
# The least that DeepSpeed's operators need: a shared object with Python's C interface.
_SOURCE = """
#include <Python.h>
#include <vector>
extern "C" int size() { return std::vector<int>{1}.size(); }
"""
_COMPILE_SECONDS = 60
_ANSWER_SECONDS = 5


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is empty where nothing is wrong."""

    word: Literal["ok", "warning", "failed"]
    name: str
    value: str
    fix: str = ""


def shared_memory(total: int | None) -> Check:
    """Check /dev/shm of `total` bytes, for Ray's objects and gloo; containers often have 64 MiB."""
    if total is None:
        return Check("ok", "shared memory", "no /dev/shm on this system")
    size = f"{total / GIB:.1f} GiB"
    if total >= _SHARED_MEMORY_GIB * GIB:
        return Check("ok", "shared memory", size)
    fix = f"Start the container with --shm-size={_SHARED_MEMORY_GIB}g or more."
    return Check("warning", "shared memory", size, fix)


def disk(free: int, folder: str) -> Check:
    """Check `free` bytes where Ray and the local caches write."""
    if free >= _DISK_GIB * GIB:
        return Check("ok", "disk", f"{free / GIB:.0f} GiB free in {folder}")
    fix = f"Free {_DISK_GIB} GiB there, or set TMPDIR to a larger disk."
    return Check("warning", "disk", f"{free / GIB:.1f} GiB free in {folder}", fix)


def open_files(limit: int) -> Check:
    """Check how many files and connections a process may have open."""
    if limit >= _OPEN_FILES:
        return Check("ok", "open files", f"{limit:,}")
    return Check("warning", "open files", f"{limit:,}", "ulimit -n 65536, before Ray is started.")


def python_version() -> Check:
    """Check the interpreter against `requires-python`."""
    from importlib.metadata import metadata

    from packaging.specifiers import SpecifierSet

    wanted = metadata("kdscale")["Requires-Python"]
    version = ".".join(map(str, sys.version_info[:3]))
    if SpecifierSet(wanted).contains(version):
        return Check("ok", "python", version)
    return Check("failed", "python", version, f"Make an environment with Python {wanted}.")


def library(name: str) -> Check:
    """Check an installed library against the bounds of our own requirements."""
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


def compiler() -> Check:
    """Check the C++ compiler: DeepSpeed builds its operators when they are first used."""
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
    """Check ninja, which those builds run."""
    # torch looks for the program on PATH, also where the Python package installed it.
    path = shutil.which("ninja")
    if path:
        return Check("ok", "ninja", path)
    return Check(
        "failed",
        "ninja",
        "not on PATH",
        f"pip install ninja, and have {Path(sys.executable).parent} on PATH.",
    )


def ray_address() -> Check:
    """Report the clusters that `kdscale run` and `kdscale submit` will use."""
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


def wandb() -> Check:
    """Report the mode of `tracking.wandb: auto` here, and whether its server answers."""
    mode, server = wandb_target()
    if mode != "online":
        why = f"WANDB_MODE={os.environ['WANDB_MODE']}" if "WANDB_MODE" in os.environ else "no key"
        return Check("ok", "W&B", f"{mode} ({why})")
    fix = "Let HTTPS through to it, or set WANDB_MODE=offline: a run waits half a minute otherwise."
    try:
        urlopen(server, timeout=_ANSWER_SECONDS).close()
    except HTTPError:
        pass  # It answers.
    except (URLError, OSError) as error:
        cause = getattr(error, "reason", error)
        return Check("warning", "W&B", f"online, but {server} does not answer: {cause}", fix)
    return Check("ok", "W&B", f"online, {server} answers")
