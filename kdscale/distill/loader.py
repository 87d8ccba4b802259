"""Loader of a cache's batches: the one way from a cache to a training, kdscale's own and others'.

A training is a stream of sequences, in an order that depends on the seed alone. Ranks take turns
in it, so the sequences of a step do not depend on how many ranks there are, and the position in
the stream is all the state that there is.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, Protocol

import numpy as np
import torch

from kdscale.cache.read.loader import CacheLoader, LoadedBatch
from kdscale.curriculum.length import shorten
from kdscale.distill.aligned_reader import Reader
from kdscale.distill.batches import Batch, to_device
from kdscale.errors import KdscaleError
from kdscale.utils.permutation import VERSION

# A look-up of the order costs the same for one position as for many.
_POSITIONS = 4096


class Order(Protocol):
    """Order of the sequences of a training."""

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the sequences [B] at `positions` ([B], ascending) of the stream."""
        ...


class Loader:
    """Batches of this rank, read ahead in threads, with a state that fits any number of ranks.

        loader = kdscale.open_cache("s3://bucket/run").loader(batch_size=16, seed=0)
        for epoch in range(loader.epoch, 3):
            for batch in loader:
                ...
            torch.save(loader.state_dict(), "loader.pt")

    An iteration takes what is left of the present epoch, and the next one the epoch after it. One
    that was left by `break` is continued, not repeated. All ranks get equally many batches: where
    an epoch ends unevenly, a sequence with an empty loss mask fills a rank's share up.
    """

    def __init__(
        self,
        reader: Reader,
        order: Order,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        span: int | None = None,
        step_sequences: int | None = None,
        prefetch: int | None = None,
        settings: dict[str, Any] | None = None,
        length_at: Callable[[int], int] | None = None,
    ) -> None:
        """See `kdscale.Cache.loader`.

        `span` is the sequences of an epoch over all ranks, None for no end. No batch goes across a
        multiple of `step_sequences`, the sequences of a step. `settings` name the order: a state is
        refused where they differ. `length_at` gives the positions of a sequence that a step is to
        have, which are its first; all where it is not given.
        """
        self.batch_size = batch_size
        self._reader, self._order = reader, order
        self._rank, self._world_size = rank, world_size
        self._device = device or torch.device("cpu")
        self._span, self._step = span, step_sequences
        self._prefetch = prefetch
        self._length_at = length_at
        self._settings = {"order": VERSION, "rows": len(reader), **(settings or {})}
        self._position = 0

    @property
    def epoch(self) -> int:
        """Number, from 0, of the epoch that the next iteration is in."""
        return self._position // self._span if self._span else 0

    def __len__(self) -> int:
        """Return the batches of an epoch. TypeError for an endless loader."""
        if self._span is None:
            raise TypeError("an endless loader has no length")
        whole = self._step or self._span
        return self._span // whole * -(-whole // (self.batch_size * self._world_size))

    def __iter__(self) -> Iterator[Batch]:
        end = None if self._span is None else (self.epoch + 1) * self._span
        for batch in self.between(self._position, end):
            self._position += len(batch.indices)
            yield batch

    def between(self, start: int, end: int | None) -> Generator[Batch, None, None]:
        """Yield this rank's batches of the sequences `start` .. `end` - 1 of the stream.

        The state of the loader is left alone. Closing the generator ends its threads.
        """
        loader = CacheLoader(
            self._reader,
            self._shared_batches(start, end),
            rank=self._rank,
            world_size=self._world_size,
            prefetch=self._prefetch,
        )
        with closing(iter(loader)) as loaded:
            for each in loaded:
                yield self._batch(each, self._length(start))
                start += len(each.indices)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`, unless the loader is in it already."""
        if self._span is not None and epoch != self.epoch:
            self._position = epoch * self._span

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the batch that was given last, the same on every rank."""
        return {"position": self._position, **self._settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the last batch of the loader that `state` is of.

        Numbers of ranks and batch sizes may differ. Raises KdscaleError where the order does.
        """
        differing = [
            f"{name}: {state.get(name)!r}, here {value!r}"
            for name, value in self._settings.items()
            if state.get(name) != value
        ]
        if differing:
            raise KdscaleError(
                "The loader's state is of another order of sequences: " + "; ".join(differing),
                "Open the same cache with the same seed, curriculum and generations, or start "
                "again without the state.",
            )
        self._position = int(state["position"])

    def _shared_batches(self, start: int, end: int | None) -> Iterator[np.ndarray]:
        """Yield the sequences of every batch, over all ranks."""
        size = self.batch_size * self._world_size
        together = max(1, _POSITIONS // size) * size
        while end is None or start < end:
            stop = start + together
            if self._step is not None:
                stop = (start // self._step + 1) * self._step
            stop = stop if end is None else min(stop, end)
            rows = self._order.rows_at(np.arange(start, stop))
            yield from (rows[first : first + size] for first in range(0, len(rows), size))
            start = stop

    def _length(self, position: int) -> int | None:
        """Return the positions that the sequences of the step at `position` are to have."""
        if self._length_at is None or self._step is None:
            return None
        return self._length_at(position // self._step)

    def _batch(self, loaded: LoadedBatch, length: int | None) -> Batch:
        reader, rows = self._reader, loaded.sequences.rows
        (mask,) = shorten(length or rows.loss_mask.shape[1], rows.loss_mask)
        counted = mask & loaded.valid[:, None]
        known = counted
        if rows.labels is not None:
            known = counted & (rows.labels[:, : counted.shape[1]] >= 0)
        made = to_device(loaded.sequences, loaded.valid, self._device, length)
        return Batch(
            made.rows,
            made.payload,
            made.entropy,
            codec=reader.codec,
            temperature=float(reader.identity["temperature"]),
            vocab_size=int(reader.identity["vocab_size"]),
            num_targets=int(np.count_nonzero(counted)),
            num_labels=int(np.count_nonzero(known)),
            indices=loaded.indices,
            has_target=made.has_target,
        )
