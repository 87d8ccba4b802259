"""The rows of every step as tensors, read ahead from the cache."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from kdscale.cache.read.concat import ConcatReader
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.read.subset import SubsetReader
from kdscale.cache.rows import CachedRows
from kdscale.config.student import DistillConfig
from kdscale.curriculum.length import length_at, shorten
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.distributed.rank import Rank
from kdscale.models.forward import RowTensors, row_tensors
from kdscale.train.batches import rank_rows, split_micro_batches
from kdscale.train.loop import Step


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward with what the cache says of them."""

    rows: RowTensors  # m of them
    payload: torch.Tensor  # [m, T, bytes_per_position] uint8
    entropy: torch.Tensor | None
    """[m] float32: mean teacher entropy over the row's targets, nats; None where rows are cut, of
    which it is not known."""


def read_steps(
    distill: DistillConfig,
    worker: Rank,
    reader: CacheReader | ConcatReader | SubsetReader,
    sampler: CurriculumSampler,
    steps: range,
) -> Iterator[Step[MicroBatch]]:
    """This rank's share of every one of `steps`, read ahead from the cache."""
    training = distill.training
    size = training.micro_batch_size
    world = worker.world_size
    seq_len = reader.seq_len

    # Batches that are being read, with their parts.
    ahead: deque[tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]] = deque()

    def orders() -> Iterator[np.ndarray]:
        for step in steps:
            batch = sampler.batch(step)
            mine = rank_rows(batch, worker.rank, world)
            parts = list(split_micro_batches(mine, batch, size, world))
            ahead.append((batch, parts))
            yield np.concatenate([rows for rows, _ in parts])

    batches = reader.batches(orders(), distill.prefetch_batches)
    for step, cached in zip(steps, batches, strict=True):
        batch, parts = ahead.popleft()
        length = length_at(distill.curriculum.length, step, training.steps, seq_len)
        micro_batches, first = [], 0
        for rows, valid in parts:
            part = slice(first, first + len(rows))
            micro_batches.append(to_device(cached, part, valid, length, worker.device))
            first += len(rows)
        targets = sum(int(one.rows.mask.sum()) for one in micro_batches)
        yield Step(micro_batches, targets, batch)


def to_device(
    cached: CachedRows, part: slice, valid: np.ndarray, length: int, device: torch.device
) -> MicroBatch:
    """The first `length` positions of rows `part` of `cached` as tensors; rows that are not `valid`
    ([m] bool) get an empty mask."""
    whole = row_tensors(cached.rows.take(np.arange(part.start, part.stop)), device, valid)
    is_whole = length >= whole.ids.shape[1]
    payload = torch.from_numpy(cached.payload[part]).to(device)
    mask, ids, segments, labels, payload = shorten(
        length, whole.mask, whole.ids, whole.segments, whole.labels, payload
    )
    entropy = torch.from_numpy(cached.entropy[part]).to(device) if is_whole else None
    return MicroBatch(RowTensors(ids, segments, mask, labels), payload, entropy)
