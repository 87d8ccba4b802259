"""LitData: chunks of 64 MB, read through its StreamingDataset, all settings as by default.

Arrays are one-dimensional, which it stores without a header. It has no checksums.
"""

import os
from functools import partial
from pathlib import Path

from litdata import StreamingDataLoader, StreamingDataset, optimize
from litdata.streaming import downloader

from benchmarks.peers.contract import BATCH_ROWS, SEED, Place, Records, StatefulLoader

PACKAGES = ("litdata",)
RESUME = "StreamingDataLoader.state_dict"


def write(records: Records, folder: Path) -> None:
    """Write chunks and their index."""
    optimize(
        fn=partial(Records.row, records),
        inputs=list(range(len(records))),
        output_dir=str(folder),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )


def open_loader(place: Place) -> StatefulLoader:
    """Return a loader that maps a local folder's chunks, and copies those of S3 to the cache."""
    options = None
    if place.is_remote:
        options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
        # Its fast path refuses a server without TLS, and there is no option for that.
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    dataset = StreamingDataset(
        place.url,
        cache_dir=str(place.cache) if place.is_remote else None,
        shuffle=True,
        seed=SEED,
        storage_options=options,
    )
    return StatefulLoader(
        StreamingDataLoader(
            dataset,
            batch_size=BATCH_ROWS,
            num_workers=place.workers,
            persistent_workers=place.workers > 0,
        )
    )
