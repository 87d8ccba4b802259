"""How fast a core undoes what packing did: positions a second, over reading the same unpacked.

    python benchmarks/unpacking.py [--quick]

Made-up records of `varopt` with 12 ids (benchmarks/peers/synthetic.py), in chunks of the
default size, from memory, on one thread. Three arms take turns on the same chunks:

    ids      the ids of a chunk alone, into memory that is there
    packed   a whole chunk as it is stored, tokens and masks too, to rows
    plain    the same chunk stored with `cache.pack: false`

The last line is one JSON object, also kept in results/unpacking.json; --quick takes fewer chunks
and keeps nothing.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from benchmarks.peers import kdscale_cache, synthetic  # noqa: E402  after the path is set
from benchmarks.peers.contract import Records  # noqa: E402
from kdscale.cache.commit.manifest import load_manifest  # noqa: E402
from kdscale.cache.format.packing import Packing, packable  # noqa: E402
from kdscale.cache.read.chunk_store import StoredChunks  # noqa: E402
from kdscale.store import open_store  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "unpacking.json"
ROW_LENGTH, CHUNK_ROWS, REPEATS = 512, 64, 7


def main(
    quick: bool = typer.Option(False, help="Few chunks, to see that it works."),
) -> None:
    """Measure, print and keep."""
    torch.set_num_threads(1)
    chunks = 2 if quick else 16
    records = synthetic.make_records(chunks * CHUNK_ROWS, ROW_LENGTH)
    arms = {"ids": unpack_ids(records)}
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("packed", "plain"):
            folder = Path(scratch) / name
            kdscale_cache.write(records, folder, packed=name == "packed")
            arms[name] = decode(folder, chunks)
        for arm in arms.values():
            arm()
        turns = [{name: _seconds(arm) for name, arm in arms.items()} for _ in range(REPEATS)]
    positions = {name: len(records) * ROW_LENGTH for name in arms}
    positions["ids"] = int(records.loss_mask.sum())
    found = {
        "benchmark": "unpacking",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "numba", "numpy", "pyarrow")},
        "rows": [
            {
                "arm": name,
                "positions_per_second": positions[name] / statistics.median(t[name] for t in turns),
            }
            for name in arms
        ],
        "packed_over_plain": statistics.median(t["packed"] / t["plain"] for t in turns),
        "goals": [],
    }
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


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


def _seconds(arm: Callable[[], Any]) -> float:
    started = time.perf_counter()
    arm()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
