"""Process of one loss, which measures on request.

    python -m benchmarks.losses.worker MODULE NAME

The first line it prints has the error of the loss's gradients on a small problem and its libraries'
versions. Then it answers every line on its input, positions and vocabulary, with one measurement:
loss and both gradients, once. Dense teacher logits are made anew each time and freed after it, so
that all losses fit into memory. A loss that cannot run answers with its `failure`, and ends.

Peak memory is the high-water mark of the process over the measurement, set back before it, less
what was resident then: inputs and what is given of the teacher are not counted, both gradients are.
"""

import ctypes
import gc
import importlib
import json
import sys
import time
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.losses.problem import Loss, Problem, gradient_error, make_problem

THREADS = 2
WIDTH = 576
_SMALL = (48, 640, 32)
_LARGEST_ERROR = 1e-4
_LONGEST_FAILURE = 300


def main(module: str, name: str) -> None:
    """Serve, or answer with the failure."""
    try:
        serve(module, name)
    except Exception as error:
        _answer({"failure": f"{type(error).__name__}: {error}"[:_LONGEST_FAILURE]})
        raise


def serve(module: str, name: str) -> None:
    """Check the gradients, then measure."""
    torch.set_num_threads(THREADS)
    loss: Loss = importlib.import_module(f"benchmarks.losses.{module}").LOSSES[name]
    error = gradient_error(loss, make_problem(*_SMALL))
    assert error < _LARGEST_ERROR, f"{name}: gradients are off by {error:.2g}"
    versions = {package: version(package) for package in loss.packages}
    _answer({"gradient_error": error, "versions": versions})
    for line in sys.stdin:
        _answer(measure(loss, **json.loads(line)))


def measure(function: Loss, positions: int, vocab_size: int) -> dict[str, Any]:
    """Return seconds and MiB of one loss with its gradients."""
    problem = _problem(positions, vocab_size)
    given = function.prepare(problem)
    gc.collect()
    # What the allocator keeps of freed memory would hide as much of the peak.
    ctypes.CDLL(None).malloc_trim(0)
    _reset_peak()
    before = _status_mib("VmRSS")
    started = time.perf_counter()
    loss = function.loss(problem, given)
    loss.backward()
    seconds = time.perf_counter() - started
    peak = _status_mib("VmHWM") - before
    problem.hidden.grad = problem.weight.grad = None
    return {
        "seconds": seconds,
        "peak_mib": peak,
        "gradients_mib": problem.gradient_bytes / 2**20,
        "loss": float(loss.detach()),
    }


@lru_cache(maxsize=1)
def _problem(positions: int, vocab_size: int) -> Problem:
    return make_problem(positions, vocab_size, WIDTH)


def _reset_peak() -> None:
    """Set VmHWM to what is resident (proc_pid_clear_refs(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_mib(field: str) -> float:
    """Return a field of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"/proc/self/status has no {field}")


def _answer(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
