"""The steps of a curriculum that follows its student: stage by stage, each on a fresh ranking.

Where difficulty is the student's gap, it is measured again before every stage, so batches cannot be
read ahead across a stage's edge. Each table is stored before a batch of its stage is drawn: a
resumed run and the baseline, which have another student by then, meet the same rows.
"""

import io
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch

from kdscale.config.student import DistillConfig
from kdscale.curriculum.difficulty import needs
from kdscale.curriculum.pacing import table_steps
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.distill.batches import MicroBatch, read_steps
from kdscale.distill.difficulty import Reader, difficulty, measure_gap
from kdscale.distributed.rank import Rank
from kdscale.store import Store
from kdscale.train.loop import Step


def make_sampler(
    distill: DistillConfig, reader: Reader, worker: Rank, vocab_size: int, seed: int
) -> CurriculumSampler:
    """The sampler of a training. Collective. Where the student's gap decides, its rankings come
    with `staged_steps`."""
    return CurriculumSampler(
        distill.curriculum,
        difficulty(
            distill.curriculum, reader, worker, vocab_size, gap=lambda: np.zeros(len(reader))
        ),
        global_batch_size=distill.training.global_batch_size,
        steps=distill.training.steps,
        seed=seed,
        sequences_per_chunk=reader.sequences_per_chunk,
    )


def staged_steps(
    distill: DistillConfig,
    worker: Rank,
    reader: Reader,
    sampler: CurriculumSampler,
    tables: Store,
    vocab_size: int,
    start: int,
    model: torch.nn.Module,
) -> Iterator[Step[MicroBatch]]:
    """This rank's share of every step from `start` on. `model` is a back end's student, at `start`
    when the first step is asked for; `tables` is where the rankings of this training are kept."""
    curriculum, steps = distill.curriculum, distill.training.steps

    def measure() -> np.ndarray:
        def gap() -> np.ndarray:
            return measure_gap(model, reader, worker, distill.training.micro_batch_size)

        return difficulty(curriculum, reader, worker, vocab_size, gap)

    for first, end in pairwise([*table_steps(curriculum, steps), steps]):
        if "gap" in needs(curriculum.difficulty):
            sampler.refresh(first, _table(tables, first, measure, worker))
        if end > start:
            yield from read_steps(distill, worker, reader, sampler, range(max(start, first), end))


def _table(tables: Store, step: int, measure: Callable[[], np.ndarray], worker: Rank) -> np.ndarray:
    """The stored table of `step`; measured and stored where there is none. Collective."""
    key = f"difficulty-{step:08d}.npy"
    # Rank 0 decides for all: a store may show a fresh object to one rank before another.
    if not worker.broadcast(tables.exists(key) if worker.rank == 0 else None):
        found = measure()
        if worker.rank == 0:
            buffer = io.BytesIO()
            np.save(buffer, found)
            tables.put(key, buffer.getvalue())
        worker.barrier()
    table: np.ndarray = np.load(io.BytesIO(tables.get(key)), allow_pickle=False)
    return table
