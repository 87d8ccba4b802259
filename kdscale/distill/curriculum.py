"""The curriculum of a training: difficulty measured on all ranks, and steps stage by stage.

Difficulty comes from the cache's statistics, from the tokens, or from the student as it stands.
What needs the sequences themselves is shared out: every rank reads its part, and all add up.

The student's gap is measured again before every stage, so batches cannot be read ahead across a
stage's edge. Each table is stored before a batch of its stage is drawn: a resumed run and the
baseline, which have another student by then, use the same batches.
"""

import io
import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch

from kdscale.config.curriculum import CurriculumConfig
from kdscale.config.student import DistillConfig
from kdscale.curriculum.difficulty import combine, count_targets, needs, row_rarity, student_gap
from kdscale.curriculum.pacing import table_steps
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.distill.aligned_reader import AlignedReader, CachedReader, Reader
from kdscale.distill.batches import MicroBatch
from kdscale.distill.steps import read_steps
from kdscale.distributed.rank import Rank
from kdscale.errors import KdscaleError
from kdscale.losses.fused import head_and_loss
from kdscale.models.forward import RowTensors, row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.models.modes import computing_dtype, evaluation_mode
from kdscale.store import Store
from kdscale.train.loop import Step
from kdscale.types import Rows, labels_of

_ROWS_AT_ONCE = 256


def make_sampler(
    distill: DistillConfig, reader: Reader, worker: Rank, vocab_size: int, seed: int
) -> CurriculumSampler:
    """Return the sampler of a training. Collective.

    Where the student's gap decides, its difficulties come with `staged_steps`. Raises KdscaleError
    for sequences without a label where the difficulty asks for labels.
    """
    curriculum = distill.curriculum
    sampler = CurriculumSampler(
        curriculum,
        len(reader),
        global_batch_size=distill.training.global_batch_size,
        steps=distill.training.steps,
        seed=seed,
        sequences_per_chunk=reader.sequences_per_chunk,
    )
    _check_labels(curriculum, reader)
    if "gap" not in needs(curriculum.difficulty):
        sampler.set_difficulty(0, difficulty(curriculum, reader, worker, vocab_size))
    return sampler


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
    """Yield this rank's share of every step from `start` on.

    `model` is a back end's student, at `start` when the first step is asked for; `tables` keeps the
    measured difficulties of this training.
    """
    curriculum, steps = distill.curriculum, distill.training.steps

    def gap() -> np.ndarray:
        return measure_gap(model, reader, worker, distill.training.micro_batch_size)

    for first, end in pairwise([*table_steps(curriculum, steps), steps]):
        if "gap" in needs(curriculum.difficulty):
            table = _stored_table(
                tables,
                first,
                lambda: difficulty(curriculum, reader, worker, vocab_size, gap),
                worker,
            )
            sampler.set_difficulty(first, table)
        if end > start:
            yield from read_steps(distill, worker, reader, sampler, range(max(start, first), end))


def difficulty(
    config: CurriculumConfig,
    reader: Reader,
    worker: Rank,
    vocab_size: int,
    gap: Callable[[], np.ndarray] | None = None,
) -> np.ndarray:
    """Return the difficulty [R] of every cached sequence, larger is harder. Collective.

    `gap` measures that of the student as it stands, where the config asks for it.
    """
    wanted, stats = needs(config.difficulty), reader.statistics
    # Ranked by what the teacher reads, whatever the student's tokens are.
    cached = reader.cached if isinstance(reader, AlignedReader) else reader
    tables = {"entropy": stats.entropy, "nll": stats.nll, "length": stats.length}
    if "rarity" in wanted:
        tables["rarity"] = _rarity(cached, worker, vocab_size)
    if "gap" in wanted:
        assert gap is not None
        tables["gap"] = gap()
    return combine(config.difficulty, tables)


@torch.no_grad()
def measure_gap(
    model: torch.nn.Module, reader: Reader, worker: Rank, micro_batch_size: int
) -> np.ndarray:
    """Return the student's mean loss on each sequence's labels less the teacher's, [R] float64.

    In nats a token of the teacher's; 0 for a sequence without targets. One forward over all
    sequences, shared out over ranks; collective. `model` is a back end's.
    """
    parts = _parts(len(reader), worker, micro_batch_size)
    nll = np.zeros(len(reader))
    with evaluation_mode(model), computing_dtype(model, worker):
        # Every rank calls the model equally often, as its parameters may be sharded.
        for number in range(_most_parts(len(reader), worker, micro_batch_size)):
            part = parts[number] if number < len(parts) else np.zeros(1, np.int64)
            found = model(_loss_sums, row_tensors(reader.read(part).rows, worker.device))
            if number < len(parts):
                nll[part] = found.cpu().numpy()
            worker.beat("a batch of the ranking")
    total = worker.all_reduce_sum(torch.from_numpy(nll).to(worker.device)).cpu().numpy()
    stats = reader.statistics
    total /= np.maximum(stats.length, 1)
    return np.where(stats.length > 0, student_gap(total, stats.nll), 0.0)


def _loss_sums(model: ModelWithHead, batch: RowTensors) -> torch.Tensor:
    """Return the sum of the losses on each sequence's labels, [B] float64."""
    hidden, known = model.hidden(batch.ids, batch.segments, batch.documents), batch.known
    rows = [
        head_and_loss(of_row[where], model.head, labels[where]).cross_entropy
        for of_row, where, labels in zip(hidden, known, batch.labels, strict=True)
    ]
    return torch.stack(rows).double()


def _check_labels(config: CurriculumConfig, reader: Reader) -> None:
    unlabelled = int(np.isnan(reader.statistics.nll).sum())
    if unlabelled and {"nll", "gap"} & set(needs(config.difficulty)):
        raise KdscaleError(
            f"{unlabelled:,} of {len(reader):,} cached sequences have no label, and the "
            "difficulties `nll` and `gap` ask for every one's.",
            "Set distill.curriculum.difficulty to entropy, length or rarity.",
        )


def _stored_table(
    tables: Store, step: int, measure: Callable[[], np.ndarray], worker: Rank
) -> np.ndarray:
    """Return the stored table of `step`; measure and store it if there is none. Collective."""
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


def _rarity(reader: CachedReader, worker: Rank, vocab_size: int) -> np.ndarray:
    """Return [R] float32. Reads every sequence twice, so that no rank holds more than a few."""
    counts = np.zeros(vocab_size, np.int64)
    for _, rows in _rows(reader, worker):
        count_targets(counts, labels_of(rows), rows.loss_mask)
    counts = worker.all_reduce_sum(torch.from_numpy(counts).to(worker.device)).cpu().numpy()
    scores = np.zeros(len(reader), np.float32)
    for part, rows in _rows(reader, worker):
        scores[part] = row_rarity(counts, labels_of(rows), rows.loss_mask)
    return worker.all_reduce_sum(torch.from_numpy(scores).to(worker.device)).cpu().numpy()


def _rows(reader: CachedReader, worker: Rank) -> Iterator[tuple[np.ndarray, Rows]]:
    """Yield this rank's sequences, with their indices [B]."""
    for part in _parts(len(reader), worker, _ROWS_AT_ONCE):
        yield part, reader.read(part).rows
        worker.beat("a batch of the ranking")


def _parts(rows: int, worker: Rank, size: int) -> list[np.ndarray]:
    """Return this rank's indices, neighbours together, in parts of at most `size`."""
    start, end = (number * rows // worker.world_size for number in (worker.rank, worker.rank + 1))
    return [np.arange(first, min(first + size, end)) for first in range(start, end, size)]


def _most_parts(rows: int, worker: Rank, size: int) -> int:
    """Return the number of parts of the rank that has most."""
    return math.ceil(math.ceil(rows / worker.world_size) / size)
