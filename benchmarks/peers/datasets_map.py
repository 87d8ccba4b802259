"""Hugging Face datasets on Parquet, as a table: `load_dataset` makes an Arrow file of it, once.

Shuffled over all rows by torchdata's samplers, a batch a call, in the format "arrow", from which
numpy takes the columns: the fastest of its ways (format "numpy" gives a third of that). Files in S3
are copied to the cache first. No checksums.
"""

from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import BatchSampler, RandomSampler

from benchmarks.peers.contract import BATCH_ROWS, FIELDS, SEED, Place, StatefulLoader
from benchmarks.peers.parquet_files import from_binary, load_options, write

__all__ = ["PACKAGES", "RESUME", StatefulLoader, "open_loader", "write"]

PACKAGES = ("datasets", "pyarrow", "torchdata")
RESUME = "StatefulDataLoader.state_dict"


def open_loader(place: Place) -> StatefulLoader:
    """Return a loader over the Arrow file in the cache, which is made where it is missing."""
    table = datasets.load_dataset(**load_options(place)).with_format("arrow")
    rows = RandomSampler(table, generator=torch.Generator().manual_seed(SEED))
    return StatefulLoader(
        StatefulDataLoader(
            table,
            sampler=BatchSampler(rows, BATCH_ROWS, drop_last=False),
            batch_size=None,
            collate_fn=_arrays,
            num_workers=place.workers,
            persistent_workers=place.workers > 0,
        )
    )


def _arrays(table: pa.Table) -> dict[str, np.ndarray]:
    return {name: _column(name, table[name]) for name in FIELDS}


def _column(name: str, column: Any) -> np.ndarray:
    """Return a chunked array of binaries of one width."""
    array: Any = pa.concat_arrays(column.chunks)
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    return from_binary(name, memoryview(data)[ends[0] : ends[-1]], len(array))
