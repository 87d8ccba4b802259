"""Speed of unpacking on one core: positions a second, over reading the same unpacked.

    python benchmarks/unpacking.py [--quick]

Made-up records of `varopt` with 12 ids (benchmarks/peers/synthetic.py), in chunks of the
default size, from memory, on one thread. Three variants take turns on the same chunks:

    ids      the ids of a chunk alone, into memory that is there
    packed   a whole chunk as it is stored, tokens and masks too, to rows
    plain    the same chunk stored with `cache.pack: false`

The last line is one JSON object, also kept in results/unpacking.json; --quick takes fewer chunks
and keeps nothing.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import Quick, ratios, report, take_turns
from benchmarks.peers import kdscale_cache, synthetic
from benchmarks.peers.contract import Records
from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.format.packing import Packing, packable
from kdscale.cache.read.chunk_store import StoredChunks
from kdscale.store import open_store

ROW_LENGTH, CHUNK_ROWS, REPEATS = 512, 64, 7


def main(quick: Quick = False) -> None:
    """Measure, print and keep."""
    torch.set_num_threads(1)
    chunks = 2 if quick else 16
    records = synthetic.make_records(chunks * CHUNK_ROWS, ROW_LENGTH)
    variants = {"ids": unpack_ids(records)}
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("packed", "plain"):
            folder = Path(scratch) / name
            kdscale_cache.write(records, folder, packed=name == "packed")
            variants[name] = decode(folder, chunks)
        turns = take_turns(variants, REPEATS)
    positions = dict.fromkeys(variants, len(records) * ROW_LENGTH)
    positions["ids"] = int(records.loss_mask.sum())
    rows = [
        {"arm": name, "positions_per_second": count / statistics.median(t[name] for t in turns)}
        for name, count in positions.items()
    ]
    over = statistics.median(ratios(turns, "packed", "plain"))
    report("unpacking", rows, [], keep=not quick, packed_over_plain=over)


def unpack_ids(records: Records) -> Callable[[], Any]:
    """Undoes the packing of every chunk's payload."""
    codec = synthetic.codec()
    assert packable(codec)
    packing, packed = Packing(codec, synthetic.prior(records)), []
    for start in range(0, len(records), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        mask = records.loss_mask[rows].astype(bool)
        contexts = records.input_ids[rows][mask]
        packed.append((contexts, packing.pack(contexts, records.payload[rows][mask])))
    width = records.payload.shape[-1]
    most = max(len(contexts) for contexts, _ in packed)
    memory, offsets = np.empty(most * width, np.uint8), width * np.arange(most)

    def run() -> None:
        for contexts, data in packed:
            packing.unpack_to(memory, offsets[: len(contexts)], contexts, data)

    return run


def decode(folder: Path, count: int) -> Callable[[], Any]:
    """Decode every chunk of the cache in `folder` from its bytes."""
    store = open_store(str(folder))
    chunks = StoredChunks(store, load_manifest(store))
    data = [chunks.fetch(number) for number in range(count)]
    return lambda: [len(chunks.decode(number, chunk)) for number, chunk in enumerate(data)]


if __name__ == "__main__":
    typer.run(main)
