"""Batches read ahead, several of them in one go.

A batch takes single rows out of many chunks, and finding a chunk costs as much as copying a dozen
rows of it. So batches that are asked for one after the other are read together and handed out as
parts: first one, so that a loop starts soon, then twice as many each time, up to what `ahead`
allows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import fields
from itertools import islice

import numpy as np

from kdscale.cache.prefetch import in_order
from kdscale.cache.rows import CachedRows
from kdscale.types import Rows

# From 4 MiB on NumPy asks for huge pages: smaller arrays cost more to map than to fill.
MOST_BYTES = 8 << 20

# So many read batches ahead.
THREADS = 4
_ROW_FIELDS = tuple(field.name for field in fields(Rows))

Read = Callable[[np.ndarray], CachedRows]


def read_batches(
    read: Read,
    orders: Iterable[np.ndarray],
    *,
    row_bytes: int,
    threads: int,
    ahead: int,
    waited: Callable[[float], None] | None = None,
) -> Generator[CachedRows, None, None]:
    """`read` of each of `orders` ([B] row numbers), in their order, by `threads` threads (0: by the
    caller's, when it asks). A row takes `row_bytes`.

    At most `ahead` orders are taken beyond the one whose batch is asked for. `waited` is told the
    seconds that the caller waited. An error surfaces at the batch that it belongs to. Closing the
    generator ends its threads.
    """
    together = max(1, (ahead + 1) // (threads + 1))
    groups = _groups(orders, together, max(1, MOST_BYTES // row_bytes))

    def read_group(group: list[np.ndarray]) -> list[CachedRows | Exception]:
        return _read_together(read, group)

    if threads == 0:
        results: Iterator[list[CachedRows | Exception]] = map(read_group, groups)
    else:
        in_groups = (ahead + 1) // together - 1
        results = in_order(read_group, groups, threads=threads, ahead=in_groups, waited=waited)
    try:
        for group in results:
            for batch in group:
                if isinstance(batch, Exception):
                    raise batch
                yield batch
    finally:
        if isinstance(results, Generator):
            results.close()


class PrefetchingReader(ABC):
    """What has rows to read, and gives batches of them ahead of time."""

    seconds_waited = 0.0
    """Seconds that the consumer of `batches` waited."""

    @abstractmethod
    def read(self, indices: np.ndarray) -> CachedRows:
        """The rows at `indices` [B], in that order."""

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""

    def batches(
        self, orders: Iterable[np.ndarray], ahead: int
    ) -> Generator[CachedRows, None, None]:
        """`read` of each of `orders`, with the next `ahead` batches read in the background.

        An error surfaces at the batch that it belongs to. Closing the iterator ends its threads.
        """
        return read_batches(
            self.read,
            orders,
            row_bytes=self.row_bytes,
            threads=min(ahead, THREADS),
            ahead=ahead,
            waited=self._count_wait,
        )

    def _count_wait(self, seconds: float) -> None:
        self.seconds_waited += seconds


def _groups(orders: Iterable[np.ndarray], most: int, most_rows: int) -> Iterator[list[np.ndarray]]:
    """The orders in groups of 1, 2, 4, ... up to `most`, of not too many rows."""
    source, size = iter(orders), 1
    while group := list(islice(source, size)):
        yield group
        rows = max(1, max(len(order) for order in group))
        size = max(1, min(2 * size, most, most_rows // rows))


def _read_together(read: Read, group: list[np.ndarray]) -> list[CachedRows | Exception]:
    """A batch for each order; where reading them together fails, each by itself or its error."""
    if len(group) > 1:
        try:
            whole = read(np.concatenate(group))
            ends = np.cumsum([len(order) for order in group])
            return [
                _part(whole, slice(end - len(o), end)) for o, end in zip(group, ends, strict=True)
            ]
        except Exception:  # whose batch it is, the second attempt shows
            pass
    return [_attempt(read, order) for order in group]


def _attempt(read: Read, order: np.ndarray) -> CachedRows | Exception:
    try:
        return read(order)
    except Exception as error:  # handed to the caller at its batch
        return error


def _part(whole: CachedRows, part: slice) -> CachedRows:
    """Consecutive rows, not copied."""
    own = {name: getattr(whole.rows, name) for name in _ROW_FIELDS}
    rows = Rows(**{name: array[part] for name, array in own.items() if array is not None})
    return CachedRows(rows, whole.payload[part], whole.entropy[part], whole.nll[part])
