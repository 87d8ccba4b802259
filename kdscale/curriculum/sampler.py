"""The rows of every global batch, as a pure function of (seed, step).

While the pool grows, a batch is drawn from it without replacement; afterwards shuffled epochs run
over all rows, in an order that keeps blocks of the cache together (`kdscale.cache.read.order`).
Ranks, world sizes and resumed runs compute the same batches without talking.
"""

import numpy as np

from kdscale.cache.read.order import EpochOrder
from kdscale.config.curriculum import CurriculumConfig
from kdscale.curriculum.pacing import competence, warmup_steps
from kdscale.shuffle import hash_key, permute

_POOL, _EPOCHS, _RANDOM_ORDER = 1, 2, 3


class CurriculumSampler:
    """Global batches over R rows of known difficulty."""

    def __init__(
        self,
        config: CurriculumConfig,
        difficulty: np.ndarray,
        *,
        batch_rows: int,
        steps: int,
        seed: int,
        rows_per_block: int = 1,
    ) -> None:
        """`difficulty` is [R], larger is harder; ties keep the order of the rows. `rows_per_block`
        is the cache's."""
        rows = len(difficulty)
        if config.order == "random":
            ranking = permute(np.arange(rows), rows, hash_key(seed, _RANDOM_ORDER))
        else:
            ranking = np.argsort(difficulty, kind="stable")
            if config.order == "hard":
                ranking = ranking[::-1]
        self._ranking = ranking
        self._difficulty = difficulty
        self._config = config
        self._batch_rows = batch_rows
        self._steps = steps
        self._seed = seed
        self._warmup = warmup_steps(config, steps)
        self._epochs = _epochs(config, rows, rows_per_block, hash_key(seed, _EPOCHS))

    def pool_size(self, step: int) -> int:
        """Rows that the batch of `step` is drawn from."""
        rows = len(self._ranking)
        share = competence(self._config, step, self._steps)
        return min(rows, max(self._batch_rows, round(share * rows)))

    def batch(self, step: int) -> np.ndarray:
        """Row numbers [batch_rows] int64 of the global batch of `step`."""
        if step >= self._warmup:
            first = (step - self._warmup) * self._batch_rows
            return self._epochs.rows_at(np.arange(first, first + self._batch_rows))
        pool = self.pool_size(step)
        # A batch is a slice of a permutation of the pool that belongs to this step alone.
        slots = np.arange(self._batch_rows) % pool
        return self._ranking[permute(slots, pool, hash_key(self._seed, _POOL, step))]

    def metrics(self, step: int) -> dict[str, float]:
        """What to log about the batch of `step`."""
        return {
            "curriculum/competence": competence(self._config, step, self._steps),
            "curriculum/pool_size": float(self.pool_size(step)),
            "curriculum/mean_difficulty": float(self._difficulty[self.batch(step)].mean()),
        }


def _epochs(config: CurriculumConfig, rows: int, rows_per_block: int, seed: int) -> EpochOrder:
    """Few rows are shuffled as a whole, whatever their blocks; many within windows of blocks."""
    if rows <= config.shuffle_rows:
        return EpochOrder(rows, seed, chunk_rows=rows, window_chunks=None)
    blocks = max(1, config.shuffle_rows // rows_per_block)
    return EpochOrder(rows, seed, chunk_rows=rows_per_block, window_chunks=blocks)


class SeenRows:
    """How much of the data has been met up to a step; a resumed run counts again from step 0."""

    def __init__(self, sampler: CurriculumSampler, rows: int) -> None:
        self._sampler = sampler
        self._counts = np.zeros(rows, dtype=np.int64)
        self._next = 0

    def metrics(self, step: int) -> dict[str, float]:
        """Share of all rows met in steps 0..step, and mean meetings of a row that was met."""
        while self._next <= step:
            np.add.at(self._counts, self._sampler.batch(self._next), 1)
            self._next += 1
        seen = int((self._counts > 0).sum())
        return {
            "curriculum/unique_seen_share": seen / len(self._counts),
            "curriculum/repeats": float(self._counts.sum()) / max(1, seen),
        }
