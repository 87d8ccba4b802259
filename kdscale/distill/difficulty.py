"""How hard each cached row is: from the cache's statistics, from its tokens, or from the student.

What needs the rows themselves is shared out: every rank reads its part once and all add up.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from kdscale.cache.read.concat import ConcatReader
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.read.subset import SubsetReader
from kdscale.config.curriculum import CurriculumConfig
from kdscale.curriculum.difficulty import combine, count_targets, needs, row_rarity, student_gap
from kdscale.distributed.rank import Rank
from kdscale.errors import KdscaleError
from kdscale.losses.fused import head_and_loss
from kdscale.models.eval_mode import evaluation_mode
from kdscale.models.forward import RowTensors, row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.types import Rows, labels_of

Reader = CacheReader | ConcatReader | SubsetReader

_ROWS_AT_ONCE = 256


def difficulty(
    config: CurriculumConfig,
    reader: Reader,
    worker: Rank,
    vocab_size: int,
    gap: Callable[[], np.ndarray] | None = None,
) -> np.ndarray:
    """Difficulty [R] of every cached row, larger is harder. Collective. `gap` gives that of the
    student as it stands, where the config asks for one."""
    wanted, stats = needs(config.difficulty), reader.statistics
    unlabelled = int(np.isnan(stats.nll).sum())
    if unlabelled and {"nll", "gap"} & set(wanted):
        raise KdscaleError(
            f"{unlabelled:,} of {len(stats):,} cached rows have no label, and the difficulties "
            "`nll` and `gap` ask for every row's.",
            "Set distill.curriculum.difficulty to entropy, length or rarity.",
        )
    tables = {"entropy": stats.entropy, "nll": stats.nll, "length": stats.length}
    if "rarity" in wanted:
        tables["rarity"] = _rarity(reader, worker, vocab_size)
    if "gap" in wanted:
        assert gap is not None
        tables["gap"] = gap()
    return combine(config.difficulty, tables)


@torch.no_grad()
def measure_gap(
    model: torch.nn.Module, reader: Reader, worker: Rank, micro_batch_size: int
) -> np.ndarray:
    """[R] float64: what the student's mean loss on a row's labels is above the teacher's, nats a
    token; 0 for a row without targets. One forward over all rows, shared out over ranks.
    Collective. `model` is a back end's."""
    parts = _parts(len(reader), worker, micro_batch_size)
    nll = np.zeros(len(reader))
    with evaluation_mode(model):
        # Every rank calls the model equally often, as its parameters may be sharded.
        for number in range(_most_parts(len(reader), worker, micro_batch_size)):
            part = parts[number] if number < len(parts) else np.zeros(1, np.int64)
            found = model(_row_nll, row_tensors(reader.read(part).rows, worker.device))
            if number < len(parts):
                nll[part] = found.cpu().numpy()
            worker.beat("a batch of the ranking")
    total = worker.all_reduce_sum(torch.from_numpy(nll).to(worker.device)).cpu().numpy()
    stats = reader.statistics
    return np.where(stats.length > 0, student_gap(total, stats.nll), 0.0)


def _row_nll(model: ModelWithHead, batch: RowTensors) -> torch.Tensor:
    """[B] float64: mean loss on each row's labels."""
    hidden, known = model.hidden(batch.ids, batch.segments), batch.known
    rows = [
        head_and_loss(of_row[where], model.head, labels[where]).cross_entropy
        for of_row, where, labels in zip(hidden, known, batch.labels, strict=True)
    ]
    return torch.stack(rows).double() / known.sum(dim=1).clamp(min=1)


def _rarity(reader: Reader, worker: Rank, vocab_size: int) -> np.ndarray:
    """[R] float32. Reads every row twice, so that no rank holds more than a few."""
    counts = np.zeros(vocab_size, np.int64)
    for _, rows in _rows(reader, worker):
        count_targets(counts, labels_of(rows), rows.loss_mask)
    counts = worker.all_reduce_sum(torch.from_numpy(counts).to(worker.device)).cpu().numpy()
    scores = np.zeros(len(reader), np.float32)
    for part, rows in _rows(reader, worker):
        scores[part] = row_rarity(counts, labels_of(rows), rows.loss_mask)
    return worker.all_reduce_sum(torch.from_numpy(scores).to(worker.device)).cpu().numpy()


def _rows(reader: Reader, worker: Rank) -> Iterator[tuple[np.ndarray, Rows]]:
    """This rank's rows, with their numbers [B]."""
    for part in _parts(len(reader), worker, _ROWS_AT_ONCE):
        yield part, reader.read(part).rows
        worker.beat("a batch of the ranking")


def _parts(rows: int, worker: Rank, size: int) -> list[np.ndarray]:
    """This rank's row numbers, neighbours together, in parts of at most `size`."""
    start, end = (rank * rows // worker.world_size for rank in (worker.rank, worker.rank + 1))
    return [np.arange(first, min(first + size, end)) for first in range(start, end, size)]


def _most_parts(rows: int, worker: Rank, size: int) -> int:
    """Parts of the rank that has most."""
    return math.ceil(math.ceil(rows / worker.world_size) / size)
