"""One finding of the doctor, and the bounds that this machine and every node are held against."""

from dataclasses import dataclass
from typing import Literal

GIB = 1024**3

# Ray keeps its objects in /dev/shm and falls back to the disk, slowly, below a share of the memory.
_SHARED_MEMORY_GIB = 2
# Room for Ray's session, a local copy of a cache and two checkpoints of a small model.
_DISK_GIB = 10
# Ray holds a few for every worker of the cluster, and a reader one for every block it has mapped.
_OPEN_FILES = 4096


@dataclass(frozen=True)
class Check:
    """One finding. `fix` is empty for what is all right."""

    word: Literal["ok", "warning", "failed"]
    name: str
    value: str
    fix: str = ""


def shared_memory(total: int | None) -> Check:
    """/dev/shm of `total` bytes, where Ray's object store and gloo live; containers often have
    64 MiB."""
    if total is None:
        return Check("ok", "shared memory", "no /dev/shm on this system")
    size = f"{total / GIB:.1f} GiB"
    if total >= _SHARED_MEMORY_GIB * GIB:
        return Check("ok", "shared memory", size)
    fix = f"Start the container with --shm-size={_SHARED_MEMORY_GIB}g or more."
    return Check("warning", "shared memory", size, fix)


def disk(free: int, folder: str) -> Check:
    """`free` bytes where Ray and the local caches write."""
    if free >= _DISK_GIB * GIB:
        return Check("ok", "disk", f"{free / GIB:.0f} GiB free in {folder}")
    fix = f"Free {_DISK_GIB} GiB there, or set TMPDIR to a larger disk."
    return Check("warning", "disk", f"{free / GIB:.1f} GiB free in {folder}", fix)


def open_files(limit: int) -> Check:
    """How many files and connections a process may have open."""
    if limit >= _OPEN_FILES:
        return Check("ok", "open files", f"{limit:,}")
    return Check("warning", "open files", f"{limit:,}", "ulimit -n 65536, before Ray is started.")
