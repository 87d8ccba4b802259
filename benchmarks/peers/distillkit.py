"""DistillKit's layout: Parquet with `list<list<uint8>>`, read as its trainer reads it.

`sample_common.py` writes files of 256 rows ("macrobatch"), snappy, token ids as uint64 and the
compressed distributions as lists of lists of bytes (here one column of 28 bytes a position in place
of its two). `main.py` loads them as a table of `datasets` and collates lists of Python integers
(`collate_packed_batch`); a resume skips batches of the sampler, as transformers' Trainer does.
https://github.com/arcee-ai/DistillKit, a61c2e7.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from benchmarks.peers.contract import BATCH_ROWS, SEED, Batch, Place, Records
from benchmarks.peers.parquet_files import load_options

PACKAGES = ("datasets", "pyarrow")
RESUME = "the sampler's batches are skipped (transformers.Trainer)"
_FILE_ROWS = 256
_BYTES = pa.list_(pa.uint8())
_TYPES = {
    "sample_ids": _BYTES,
    "input_ids": pa.list_(pa.uint64()),
    "loss_mask": _BYTES,
    "payload": pa.list_(_BYTES),
}


def write(records: Records, folder: Path) -> None:
    """Write files data_0.parquet, data_1.parquet, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(records), _FILE_ROWS)):
        rows = slice(start, min(start + _FILE_ROWS, len(records)))
        columns = [_lists(getattr(records, name)[rows], kind) for name, kind in _TYPES.items()]
        table = pa.Table.from_arrays(columns, names=list(_TYPES))
        pq.write_table(table, folder / f"data_{number}.parquet")


def _lists(values: np.ndarray, kind: Any) -> Any:
    """Return [R, N] or [R, T, 28] numbers as lists, or lists of lists."""
    inner = kind.value_type
    if values.ndim > 2:
        rows = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        flat = _lists(values.reshape(-1, values.shape[-1]), inner)
        return pa.ListArray.from_arrays(rows, flat)
    ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(ends, pa.array(values.ravel(), inner))


def open_loader(place: Place) -> "DistillKitLoader":
    """Return a loader over the Arrow file in the cache, which is made where it is missing."""
    return DistillKitLoader(datasets.load_dataset(**load_options(place)), place.workers)


def collate_packed_batch(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collate as DistillKit does."""
    return {key: torch.tensor([example[key] for example in examples]) for key in examples[0]}


class DistillKitLoader:
    """An order of batches for each epoch, and a DataLoader that goes through it."""

    def __init__(self, table: datasets.Dataset, workers: int) -> None:
        self._table = table
        self._workers = workers
        self._taken = 0

    def epoch(self, number: int) -> Iterator[Batch]:
        """Return the batches of an epoch."""
        return self._batches(number, skipped=0)

    def state(self) -> Any:
        """Return the number of batches taken."""
        return self._taken

    def resume(self, state: Any) -> Iterator[Batch]:
        """Return the rest of the epoch."""
        return self._batches(0, skipped=state)

    def _batches(self, epoch: int, skipped: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(SEED + epoch)
        rows = RandomSampler(self._table, generator=generator)
        order = BatchSampler(rows, BATCH_ROWS, drop_last=False)
        self._taken = skipped
        loader = DataLoader(
            self._table,
            batch_sampler=list(islice(order, skipped, None)),
            collate_fn=collate_packed_batch,
            num_workers=self._workers,
        )
        for batch in loader:
            self._taken += 1
            yield batch
