"""Sampler of global batches: which sequences a step uses, as a pure function of (seed, step).

While the pool grows with every step, a batch is drawn from it without replacement. A pool that
stays for a stage is used in shuffled epochs. Afterwards shuffled epochs run over all sequences, in
an order that keeps chunks of the cache together (`kdscale.cache.read.order`). Ranks, world sizes
and resumed runs compute the same batches without talking.

The student's gap is measured again during training: then a batch is a function of the tables of
difficulties too, which the caller stores, and passes to a resumed run.
"""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from kdscale.cache.read.order import EpochOrder
from kdscale.config.curriculum import CurriculumConfig
from kdscale.curriculum.pacing import competence, pool_since, table_steps, uniform_from
from kdscale.utils.permutation import hash_key, permute

_POOL, _EPOCHS, _RANDOM_ORDER = 1, 2, 3


@dataclass(frozen=True)
class _Table:
    difficulty: np.ndarray  # [R]
    ranking: np.ndarray  # [R] int64: indices, those that join the pool first at the front


class CurriculumSampler:
    """Sampler of global batches over R sequences of known difficulty."""

    def __init__(
        self,
        config: CurriculumConfig,
        rows: int,
        *,
        global_batch_size: int,
        steps: int,
        seed: int,
        sequences_per_chunk: int = 1,
    ) -> None:
        """Make a sampler over `rows` sequences; `set_difficulty` comes before the first batch.

        Sequences of equal difficulty come in a random order, so that the order of the corpus
        decides nothing. `sequences_per_chunk` is the cache's.
        """
        self._rows = rows
        self._config = config
        self._batch_rows = global_batch_size
        self._steps = steps
        self._seed = seed
        self._uniform = uniform_from(config, steps)
        self._epochs = _epochs(config, rows, sequences_per_chunk, hash_key(seed, _EPOCHS))
        self._due = table_steps(config, steps)
        self._tables: dict[int, _Table] = {}

    def set_difficulty(self, step: int, difficulty: np.ndarray) -> None:
        """Set the difficulty [R], larger is harder, from `step` to the next of `table_steps`.

        `step` must be one of these, of which 0 is the first. A batch of a stage without its table
        is refused: a reader must not run ahead of the measurement, and a resumed run needs the
        earlier tables.
        """
        assert step in self._due, (step, self._due)
        assert difficulty.shape == (self._rows,), (difficulty.shape, self._rows)
        self._tables[step] = _Table(difficulty, _rank(difficulty, self._config.order, self._seed))

    def pool_size(self, step: int) -> int:
        """Return the number of sequences that the batch of `step` is drawn from."""
        share = competence(self._config, step, self._steps)
        return min(self._rows, max(self._batch_rows, round(share * self._rows)))

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the indices [B] int64 at `positions` ([B], ascending) of all batches in a row.

        Where all sequences are in the pool, positions of any steps cost one look-up together.
        """
        steps = positions // self._batch_rows
        if len(positions) == 0 or steps[0] >= self._uniform:
            return self._epochs.rows_at(positions - self._uniform * self._batch_rows)
        batches = [self.batch(int(step)) for step in range(steps[0], steps[-1] + 1)]
        found: np.ndarray = np.concatenate(batches)[positions - steps[0] * self._batch_rows]
        return found

    def batch(self, step: int) -> np.ndarray:
        """Return the indices [global_batch_size] int64 of the global batch of `step`."""
        if step >= self._uniform:
            return self._epochs.rows_at(self._positions(step - self._uniform))
        since = pool_since(self._config, step, self._steps)
        pool = self.pool_size(step)
        order = EpochOrder(pool, hash_key(self._seed, _POOL, since), pool, window_chunks=None)
        return self._table(step).ranking[order.rows_at(self._positions(step - since))]

    def metrics(self, step: int, batch: np.ndarray) -> dict[str, float]:
        """Return what to log about `batch`, the one of `step`."""
        difficulty = self._table(step).difficulty
        return {
            "curriculum/competence": competence(self._config, step, self._steps),
            "curriculum/pool_size": float(self.pool_size(step)),
            "curriculum/mean_difficulty": float(difficulty[batch].mean()),
        }

    def _positions(self, batches: int) -> np.ndarray:
        """Return the positions of a batch in epochs that began so many batches ago."""
        return np.arange(batches * self._batch_rows, (batches + 1) * self._batch_rows)

    def _table(self, step: int) -> _Table:
        due = self._due[bisect_right(self._due, step) - 1]
        assert due in self._tables, f"step {step} needs the difficulties of step {due}"
        return self._tables[due]


def _rank(difficulty: np.ndarray, order: str, seed: int) -> np.ndarray:
    """Return the indices in the order in which they join the pool, [R] int64."""
    mixed = permute(np.arange(len(difficulty)), len(difficulty), hash_key(seed, _RANDOM_ORDER))
    if order == "random":
        return mixed
    keys = difficulty[mixed] if order == "easy" else -difficulty[mixed].astype(np.float64)
    return mixed[np.argsort(keys, kind="stable")]


def _epochs(config: CurriculumConfig, rows: int, sequences_per_chunk: int, seed: int) -> EpochOrder:
    """Return the order of epochs: few sequences shuffled as a whole, many in windows of chunks."""
    if rows <= config.shuffle_sequences:
        return EpochOrder(rows, seed, chunk_rows=rows, window_chunks=None)
    chunks = max(1, config.shuffle_sequences // sequences_per_chunk)
    return EpochOrder(rows, seed, chunk_rows=sequences_per_chunk, window_chunks=chunks)


class SeenRows:
    """Counter of the distinct sequences that a training has used since its step 0."""

    def __init__(self, sampler: CurriculumSampler, rows: int) -> None:
        self._sampler = sampler
        self._met = np.zeros(rows, dtype=bool)
        self._distinct = 0
        self._meetings = 0
        self._next = 0

    def add(self, step: int, batch: np.ndarray) -> None:
        """Count `batch`, the one of `step`.

        Steps before it that were not added, as those of the run that this one resumes, are taken
        from the sampler.
        """
        for missed in range(self._next, step):
            self._count(self._sampler.batch(missed))
        self._count(batch)
        self._next = step + 1

    def _count(self, batch: np.ndarray) -> None:
        self._distinct += len(np.unique(batch[~self._met[batch]]))
        self._met[batch] = True
        self._meetings += len(batch)

    def metrics(self) -> dict[str, float]:
        """Return the share of all sequences that were used, and the mean uses of each of them."""
        return {
            "curriculum/unique_seen_share": self._distinct / len(self._met),
            "curriculum/repeats": self._meetings / max(1, self._distinct),
        }
