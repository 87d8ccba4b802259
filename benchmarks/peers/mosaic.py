"""MosaicML Streaming, in its maintained fork `streaming-community` (same package `streaming`).

The original's last release (0.13.0) pins numpy below 2.2 and transformers below 5. Settings: shards
of 64 MiB, no compression (the payload has none left), shuffle `py1e`, all as by default, but with
xxh3 in the shards, checked when a shard arrives; a shard that is on the local disk is not checked.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

from benchmarks.peers.contract import (
    BATCH_ROWS,
    PAYLOAD_BYTES,
    SEED,
    Place,
    Records,
    StatefulLoader,
)

# `streaming` imports its image classes, which need a torchvision built for the very torch that is
# installed. Where torch is a CPU build and torchvision is not, it cannot be imported; records hold
# no images.
sys.modules.setdefault("streaming.vision", ModuleType("streaming.vision"))

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

PACKAGES = ("streaming-community",)
RESUME = "StreamingDataLoader.state_dict"
_HASH = "xxh3_64"


def write(records: Records, folder: Path) -> None:
    """Write MDS shards and their index."""
    length = records.seq_len
    columns = {
        "sample_ids": "ndarray:uint8:16",
        "input_ids": f"ndarray:int32:{length}",
        "loss_mask": f"ndarray:uint8:{length}",
        "payload": f"ndarray:uint8:{length * PAYLOAD_BYTES}",
    }
    with MDSWriter(out=str(folder), columns=columns, hashes=[_HASH]) as writer:
        for index in range(len(records)):
            writer.write(records.row(index))


def open_loader(place: Place) -> StatefulLoader:
    """Return a loader that reads a local folder in place, and copies shards of S3 to the cache."""
    if place.is_remote:
        os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
        where = {"remote": place.url, "local": str(place.cache)}
    else:
        where = {"local": place.url}
    dataset = StreamingDataset(
        **where, shuffle=True, shuffle_seed=SEED, batch_size=BATCH_ROWS, validate_hash=_HASH
    )
    return StatefulLoader(
        StreamingDataLoader(
            dataset,
            batch_size=BATCH_ROWS,
            num_workers=place.workers,
            persistent_workers=place.workers > 0,
        )
    )
