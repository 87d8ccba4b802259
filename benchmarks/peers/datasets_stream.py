"""Hugging Face datasets on Parquet, as a stream: files interleaved, rows in a buffer of 1,000.

The buffer is the size of its documentation; batches are formed by the stream, which handles tables
until then. Nothing is kept on the local disk, and there are no checksums.
"""

from typing import Any

import datasets
import numpy as np
from torchdata.stateful_dataloader import StatefulDataLoader

from benchmarks.peers.contract import BATCH_ROWS, FIELDS, SEED, Place, StatefulLoader
from benchmarks.peers.parquet_files import from_binary, load_options, write

__all__ = ["PACKAGES", "RESUME", "open_loader", "write"]

PACKAGES = ("datasets", "pyarrow", "torchdata")
RESUME = "StatefulDataLoader.state_dict, without what is in the buffer"
_BUFFER_ROWS = 1000

# It waits for 5 seconds after the last row of an epoch, against crashes of Arrow's threads. Against
# real epochs that is nothing, against the short ones here it would be all.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0


def open_loader(place: Place) -> StatefulLoader:
    """Return a loader that reads the Parquet files where they are."""
    stream = datasets.load_dataset(**load_options(place), streaming=True)
    return StatefulLoader(
        StatefulDataLoader(
            stream.shuffle(seed=SEED, buffer_size=_BUFFER_ROWS).batch(BATCH_ROWS),
            batch_size=None,
            collate_fn=_arrays,
            num_workers=place.workers,
            persistent_workers=place.workers > 0,
        )
    )


def _arrays(columns: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: from_binary(name, b"".join(columns[name]), len(columns[name])) for name in FIELDS}
