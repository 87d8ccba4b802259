"""Run a function on real gloo ranks, one process each, and collect what each returns."""

import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT_SECONDS = 240


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """`function(*arguments)` on each rank of a fresh gloo group; results by rank.

    `function` and what it returns must be picklable. A rank that fails or hangs fails the caller
    with its traceback; only processes started here are ended.
    """
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        meeting = os.path.join(folder, "meeting")
        processes = [
            context.Process(
                target=_rank, args=(rank, world_size, meeting, results, function, arguments)
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT_SECONDS)
        hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for rank in hung:
            processes[rank].kill()
            processes[rank].join()
    found: dict[int, Any] = {}
    while not results.empty():
        rank, value, error = results.get()
        if error is not None:
            raise AssertionError(f"rank {rank} failed:\n{error}")
        found[rank] = value
    if hung or len(found) < world_size:
        raise AssertionError(f"ranks {hung} hung; ranks {sorted(found)} returned")
    return [found[rank] for rank in range(world_size)]


def _rank(
    rank: int,
    world_size: int,
    meeting: str,
    results: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
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
        value = function(*arguments)
        dist.barrier()
        results.put((rank, value, None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
