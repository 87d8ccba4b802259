"""Batches of distillation: what the cache has of every step, as tensors on the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from kdscale.cache.read.loader import CacheLoader
from kdscale.cache.rows import CachedRows
from kdscale.config.student import DistillConfig
from kdscale.curriculum.length import length_at, shorten
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.distill.aligned_reader import AlignedCachedRows, Reader
from kdscale.distributed.rank import Rank
from kdscale.models.forward import RowTensors, row_tensors
from kdscale.train.loop import Step


@dataclass(frozen=True)
class MicroBatch:
    """Sequences of one forward with what the cache has of them."""

    rows: RowTensors  # m of them
    payload: torch.Tensor  # [m, T, bytes_per_position] uint8
    entropy: torch.Tensor | None
    """[m] float32: mean teacher entropy over the sequence's targets, nats; None where sequences are
    cut, as it is not known of a part, and where they are in other tokens than the teacher's."""

    has_target: torch.Tensor | None = None
    """[m, T] bool: the positions with a target of the teacher's; None: all that count."""


def read_steps(
    distill: DistillConfig,
    worker: Rank,
    reader: Reader,
    sampler: CurriculumSampler,
    steps: range,
) -> Iterator[Step[MicroBatch]]:
    """Yield this rank's share of every one of `steps`, read ahead from the cache."""
    training = distill.training
    size, seq_len = training.micro_batch_size, reader.seq_len
    loader = CacheLoader(
        reader,
        map(sampler.batch, steps),
        rank=worker.rank,
        world_size=worker.world_size,
        prefetch=distill.prefetch_batches,
        start_step=steps.start,
    )
    for batch in loader:
        length = length_at(distill.curriculum.length, batch.step, training.steps, seq_len)
        micro_batches = []
        for first in range(0, len(batch.valid), size):
            part = slice(first, min(first + size, len(batch.valid)))
            made = to_device(batch.sequences, part, batch.valid[part], length, worker.device)
            micro_batches.append(made)
        targets = sum(int(one.rows.mask.sum()) for one in micro_batches)
        yield Step(micro_batches, targets, batch.indices)


def to_device(
    cached: CachedRows, part: slice, valid: np.ndarray, length: int, device: torch.device
) -> MicroBatch:
    """Return the first `length` positions of sequences `part` of `cached` as tensors.

    Those that are not `valid` ([m] bool) get an empty mask.
    """
    whole = row_tensors(cached.rows.take(np.arange(part.start, part.stop)), device, valid)
    is_whole = length >= whole.ids.shape[1]
    payload = torch.from_numpy(cached.payload[part]).to(device)
    mask, ids, segments, labels, payload = shorten(
        length, whole.mask, whole.ids, whole.segments, whole.labels, payload
    )
    rows = RowTensors(ids, segments, mask, labels)
    if isinstance(cached, AlignedCachedRows):
        has_target = torch.from_numpy(cached.has_target[part, :length]).to(device)
        return MicroBatch(rows, payload, None, has_target)
    entropy = torch.from_numpy(cached.entropy[part]).to(device) if is_whole else None
    return MicroBatch(rows, payload, entropy)
