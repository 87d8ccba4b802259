"""Batches of a cache in the forms that `transformers.Trainer` asks for."""

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch

from kdscale.api.cache import Cache
from kdscale.distill.batches import Batch
from kdscale.distill.loader import Loader
from kdscale.models.forward import RowTensors, row_tensors
from kdscale.types import Rows
from kdscale.utils.rank_share import rank_share


class NumberedBatches(torch.utils.data.Dataset[dict[str, Any]]):
    """Micro-batches of a training by number; asked for in a row, they are read ahead."""

    def __init__(self, loader: Loader, batch_sequences: int, sequences: int) -> None:
        """`batch_sequences` of the stream, over all ranks, are in a batch."""
        self._loader = loader
        self._size = batch_sequences
        self._sequences = sequences
        self._open: tuple[int, Generator[Batch, None, None]] | None = None

    def __len__(self) -> int:
        """Return the sequences of the cache, which Trainer calls examples."""
        return self._sequences

    def __getitem__(self, number: int) -> dict[str, Any]:
        if self._open is None or self._open[0] != number:
            self.close()
            self._open = (number, self._loader.between(number * self._size, None))
        stream = self._open[1]
        batch = next(stream)
        self._open = (number + 1, stream)
        # Tokens and mask are counted by Trainer.
        mask = batch.segment_ids != 0
        return {"input_ids": batch.input_ids, "attention_mask": mask, "batch": batch}

    def close(self) -> None:
        """End the threads that read ahead."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


class EpochNumbers(torch.utils.data.Sampler[list[int]]):
    """Numbers of an epoch's micro-batches, each a batch of its own for torch's DataLoader.

    A checkpoint inside of an epoch is resumed by leaving out the first numbers, not the data.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._epoch = 0

    @property
    def batch_sampler(self) -> "EpochNumbers":
        """Itself: Trainer looks here for who is to know the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        first = self._epoch * self._count
        return ([number] for number in range(first, first + self._count))


class EvaluationBatches:
    """All sequences in their order, shared over ranks; every rank has equally many batches."""

    def __init__(
        self, data: Cache | Rows, size: int, rank: int, world_size: int, device: torch.device
    ) -> None:
        self.dataset = data
        self._size, self._rank, self._world_size = size, rank, world_size
        self._device = device

    def __len__(self) -> int:
        return -(-len(self.dataset) // (self._size * self._world_size))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if isinstance(self.dataset, Rows):
            for rows in self._of_rows(self.dataset):
                yield {"input_ids": rows.ids, "rows": rows, "batch": None}
            return
        loader = Loader(
            self.dataset.reader,
            _InOrder(),
            self._size,
            rank=self._rank,
            world_size=self._world_size,
            device=self._device,
        )
        for batch in loader.between(0, len(self.dataset)):
            yield {"input_ids": batch.input_ids, "rows": batch.rows, "batch": batch}

    def _of_rows(self, data: Rows) -> Iterator[RowTensors]:
        together = self._size * self._world_size
        for first in range(0, len(data), together):
            block = np.arange(first, min(first + together, len(data)))
            mine, valid = rank_share(block, self._rank, self._world_size)
            yield row_tensors(data.take(mine), self._device, valid)


class _InOrder:
    """Order of the cache itself."""

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """See Order."""
        return positions
