"""Run a function on real gloo ranks, one process each, and collect the results."""

import gc
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing

from kdscale.distributed.rank import Rank
from tests.forked import context

TIMEOUT_SECONDS = 240


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    dtype: torch.dtype = torch.float32,
) -> list[Any]:
    """Run `function(*arguments)` on each rank of a fresh gloo group; return results by rank.

    Forward and backward are computed in `dtype`; GPUs have bfloat16. `function` and its result must
    be picklable. A rank that fails or hangs fails the caller with its traceback; only processes
    started here are ended.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        meeting = os.path.join(folder, "meeting")
        pipes, processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank, args=(rank, world_size, meeting, theirs, dtype, function, arguments)
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        # Read before they are awaited: a rank does not end before its result has gone through.
        found = [_receive(pipe, deadline) for pipe in pipes]
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
    errors = [f"rank {rank} {error}" for rank, (_, error) in enumerate(found) if error is not None]
    if errors:
        raise AssertionError("\n".join(errors))
    return [value for value, _ in found]


def _receive(pipe: Connection, deadline: float) -> tuple[Any, str | None]:
    """Return (result, None) of a rank, or (None, failure)."""
    if not pipe.poll(max(0.0, deadline - time.monotonic())):
        return None, "hung"
    try:
        value, error = pipe.recv()
    except EOFError:
        return None, "died"
    return value, error


def _rank(
    rank: int,
    world_size: int,
    meeting: str,
    results: Connection,
    dtype: torch.dtype,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    # Libraries' objects are many and stay: collections, which DeepSpeed asks for, skip them.
    gc.freeze()
    # DeepSpeed and transformers read these; Ray sets them in a real worker group.
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
    )
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size
        )
        with mock.patch.object(Rank, "dtype", dtype):
            value = function(*arguments)
        dist.barrier()
        results.send((value, None))
    except BaseException:
        results.send((None, f"failed:\n{traceback.format_exc()}"))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
