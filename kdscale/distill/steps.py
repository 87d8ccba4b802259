"""Steps of a training by kdscale: the batches of a global batch, cut as the curriculum says."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from kdscale.config.student import DistillConfig
from kdscale.curriculum.length import length_at
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.distill.aligned_reader import Reader
from kdscale.distill.batches import MicroBatch
from kdscale.distill.loader import Loader
from kdscale.distributed.rank import Rank
from kdscale.train.batches import micro_batches_per_rank
from kdscale.train.loop import Step


def read_steps(
    distill: DistillConfig,
    worker: Rank,
    reader: Reader,
    sampler: CurriculumSampler,
    steps: range,
) -> Iterator[Step[MicroBatch]]:
    """Yield this rank's share of every one of `steps`, read ahead from the cache."""
    training, length = distill.training, distill.curriculum.length
    size, sequences = training.micro_batch_size, training.global_batch_size
    count = micro_batches_per_rank(sequences, size, worker.world_size)
    loader = Loader(
        reader,
        sampler,
        size,
        rank=worker.rank,
        world_size=worker.world_size,
        device=worker.device,
        step_sequences=sequences,
        prefetch=distill.prefetch_batches * count,
        length_at=lambda step: length_at(length, step, training.steps, reader.seq_len),
    )
    batches = loader.between(steps.start * sequences, steps.stop * sequences)
    for _ in steps:
        parts = list(islice(batches, count))
        indices = np.concatenate([part.indices for part in parts])
        yield Step(list[MicroBatch](parts), sum(part.num_targets for part in parts), indices)
