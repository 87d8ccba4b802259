"""Probes of a node, here or through Ray.

The code is sent to the node, which may have another kdscale, or none. So nothing of kdscale is
imported, and everything else where it is used.
"""

import os
from typing import Any

PACKAGES = ("ray", "torch", "deepspeed", "transformers", "kdscale")
_ELEMENTS = 2**18  # float32: a mebibyte
_REPEATS = 8
_SMI_SECONDS = 60  # a driver that is not kept loaded starts every GPU first


def facts() -> dict[str, Any]:
    """Return versions and limits of the machine that this runs on."""
    import platform
    from importlib import metadata

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    free, folder = disk()
    return {
        "versions": versions,
        "shared_memory": shared_memory(),
        "disk_free": free,
        "disk_folder": folder,
        "open_files": open_files(),
        "gpus": gpus(),
        "cuda": cuda(),
    }


def shared_memory() -> int | None:
    """Return the bytes of /dev/shm; None where there is none."""
    import shutil

    return shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None


def disk() -> tuple[int, str]:
    """Return the free bytes of the folder for temporary files, and the folder."""
    import shutil
    import tempfile

    folder = tempfile.gettempdir()
    return shutil.disk_usage(folder).free, folder


def open_files() -> int:
    """Return how many files this process may have open."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def gpus() -> dict[str, Any]:
    """Return `names` and `driver` of this machine's GPUs, or the `problem` of nvidia-smi.

    Empty where there is no nvidia-smi, or it finds no GPU.
    """
    import shutil
    import subprocess

    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, check=False, timeout=_SMI_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": str(error)}
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if any(line.startswith("No devices") for line in lines) or not (lines or done.returncode):
        return {}
    rows = [line.partition(", ") for line in lines if ", " in line]
    if done.returncode or not rows:
        return {"problem": lines[0] if lines else f"exit code {done.returncode}"}
    return {"names": [name for _, _, name in rows], "driver": rows[0][0]}


def cuda() -> str | None:
    """Return the CUDA version that torch is built for; None for a CPU build, or without torch."""
    try:
        import torch
    except ImportError:
        return None
    return torch.version.cuda


class Peer:
    """One of two ranks on two nodes."""

    def __init__(self, seconds: float) -> None:
        """seconds: the longest wait for the other."""
        from datetime import timedelta

        self._wait = timedelta(seconds=seconds)
        self._store: Any = None

    def open(self) -> tuple[str, int]:
        """Return the address of this rank, which is rank 0."""
        import ray

        host = ray.util.get_node_ip_address()
        self._store = self._tcp_store((host, 0), is_master=True)
        return host, self._store.port

    def meet(self, rank: int, address: tuple[str, int], backend: str) -> float:
        """All-reduce with the other rank; return MB/s of this rank's tensors."""
        import time

        import torch
        import torch.distributed as dist

        store = self._store or self._tcp_store(address, is_master=False)
        dist.init_process_group(backend, store=store, rank=rank, world_size=2, timeout=self._wait)
        device = torch.device("cuda" if backend == "nccl" else "cpu")
        values = torch.full((_ELEMENTS,), float(rank + 1), device=device)
        dist.all_reduce(values)
        if not bool((values == 3).all()):
            raise RuntimeError(f"the sum of 1 and 2 came out as {values[0].item()}")
        started = time.perf_counter()
        for _ in range(_REPEATS):
            dist.all_reduce(values)
        # Reading a value waits for the device.
        values[0].item()
        seconds = time.perf_counter() - started
        dist.destroy_process_group()
        return _REPEATS * values.nbytes / seconds / 1e6

    def _tcp_store(self, address: tuple[str, int], is_master: bool) -> Any:
        import torch.distributed as dist

        return dist.TCPStore(  # type: ignore[attr-defined]
            *address, 2, is_master, self._wait, wait_for_workers=False
        )
