"""Work of one rank that capture_overhead.py and scaling.py time: bare forwards and captures."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from kdscale.data.rows.prepared import Prepared
from kdscale.distributed.rank import Rank
from kdscale.models.forward import compute_logits, row_tensors, unwrapped
from kdscale.teacher.capture import CaptureJob, fill_cache


@torch.no_grad()
def forward(spec: CaptureJob, rank: Rank, teacher: torch.nn.Module, prepared: Prepared) -> None:
    """Run the teacher over the rank's share of the shards, in the batches of a capture."""
    table, size = prepared.split("train"), spec.config.cache.capture.micro_batch_size
    model = unwrapped(teacher).model
    for shard in spec.plan.shards[rank.rank :: rank.world_size]:
        for start in range(shard.start, shard.stop, size):
            rows = table.take(spec.selected[start : min(start + size, shard.stop)])
            made = row_tensors(rows, rank.device)
            compute_logits(model, made.ids, made.segments, prepared.vocab_size, made.documents)


def capture(
    spec: CaptureJob, rank: Rank, teacher: torch.nn.Module, prepared: Prepared, folder: str
) -> None:
    """Capture the rank's share of the shards to a fresh cache in `folder` of the output."""
    cache = spec.output.child(folder)
    if rank.rank == 0:
        for prefix in ("plans/", "prior/"):
            for key in spec.cache.list(prefix):
                cache.put(key, spec.cache.get(key))
    rank.barrier()
    fresh = replace(spec, cache=cache, put_if_absent=cache.put_if_absent)
    fill_cache(fresh, rank, teacher, prepared, spec.group(rank))


def seconds_of(work: Callable[[], None], rank: Rank) -> float:
    """Return the time from when all ranks are ready until all have finished."""
    rank.barrier()
    started = time.perf_counter()
    work()
    rank.barrier()
    return time.perf_counter() - started
