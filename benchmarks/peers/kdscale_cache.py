"""kdscale's cache, as a student reads it: packed ids, checksums on.

Threads do the work of loader processes: with `workers` 0 a batch is read where the loop runs.
"""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.contract import BATCH_ROWS, SEED, Batch, Place, Records
from benchmarks.peers.synthetic import VOCAB, codec, prior
from kdscale.cache.commit.manifest import publish
from kdscale.cache.commit.plan import create_or_load_plan, selection_hash
from kdscale.cache.commit.writer import ShardWriter
from kdscale.cache.read.disk_cache import DiskCache
from kdscale.cache.read.loader import CacheLoader
from kdscale.cache.read.order import EpochOrder
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows, RowStats
from kdscale.cache.spec import FORMAT
from kdscale.config.cache import CacheConfig
from kdscale.store import open_store
from kdscale.types import Rows

PACKAGES = ("kdscale",)
RESUME = "the number of the step"
# Rows are shuffled within 64 chunks of 64 rows: four times the peers' buffers of 1,000.
_WINDOW_CHUNKS = 64
_DISK_BYTES = 8 << 30
_REPEATS = 7
_DATA = "0" * 16


def write(records: Records, folder: Path, *, packed: bool = True) -> None:
    """Write a published cache with shards and chunks of the default size."""
    store, sizes = open_store(str(folder)), CacheConfig.model_fields
    identity = {
        "format": FORMAT,
        "teacher": "synthetic",
        "tokenizer": "synthetic",
        "vocab_size": VOCAB,
        "data": _DATA,
        "seq_len": records.seq_len,
        "codec": codec().describe(),
        "temperature": 1.0,
        "dtype": "float32",
        "rows": len(records),
        "seed": 0,
    }
    generation = create_or_load_plan(
        store,
        identity,
        data=_DATA,
        request=selection_hash(len(records)),
        rows=len(records),
        sequences_per_shard=sizes["sequences_per_shard"].default,
        sequences_per_chunk=sizes["sequences_per_chunk"].default,
        count_prior=(lambda: prior(records)) if packed else None,
    )
    writer = ShardWriter(store, identity, generation)
    for shard, numbers in enumerate(generation.shards):
        at = np.array(numbers)
        rows = _rows(records, at)
        writer.commit(shard, rows, records.payload[at], _statistics(rows))
    publish(store, generation)


def _rows(records: Records, at: np.ndarray) -> Rows:
    """Return the records at `at` as rows of one document each."""
    input_ids = records.input_ids[at]
    return Rows(
        sample_ids=records.sample_ids[at],
        input_ids=input_ids,
        segment_ids=np.ones_like(input_ids),
        loss_mask=records.loss_mask[at].astype(bool),
        byte_counts=np.full(len(at), 4.0 * input_ids.shape[1]),
    )


def _statistics(rows: Rows) -> RowStats:
    zeros = np.zeros(len(rows), np.float32)
    return RowStats(rows.sample_ids, zeros, zeros, rows.loss_mask.sum(1).astype(np.int32))


def open_loader(place: Place) -> "KdscaleLoader":
    """Return a loader over the cache where it lies: the one that students train with."""
    reader = _reader(place)
    assert len(reader) % BATCH_ROWS == 0
    return KdscaleLoader(reader, place.workers)


def _reader(place: Place) -> CacheReader:
    """Return a reader of the cache where it lies, with chunks in memory and on the local disk."""
    return CacheReader(open_store(place.url), disk=DiskCache(place.cache, _DISK_BYTES))


class KdscaleLoader:
    """Steps of an endless order, counted off into epochs."""

    def __init__(self, reader: CacheReader, threads: int) -> None:
        self._reader = reader
        self._threads = threads
        self._steps = len(reader) // BATCH_ROWS
        self._step = 0

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of the next epoch."""
        return self._batches(self._steps)

    def state(self) -> Any:
        """Return the number of the next step."""
        return self._step

    def resume(self, state: Any) -> Iterator[Batch]:
        """Yield the rest of the epoch."""
        self._step = state
        return self._batches(self._steps - state)

    def _batches(self, steps: int) -> Iterator[Batch]:
        order = EpochOrder(
            len(self._reader),
            seed=SEED,
            chunk_rows=self._reader.sequences_per_chunk,
            window_chunks=_WINDOW_CHUNKS,
        )
        loader = CacheLoader(
            self._reader,
            order.batches(BATCH_ROWS, self._step),
            threads=self._threads,
            start_step=self._step,
        )
        for batch in islice(loader, steps):
            self._step = batch.step + 1
            yield _fields(batch.sequences)


def _fields(batch: CachedRows) -> Batch:
    return {
        "sample_ids": batch.rows.sample_ids,
        "input_ids": batch.rows.input_ids,
        "loss_mask": batch.rows.loss_mask,
        "payload": batch.payload,
    }


def measure(place: Place) -> dict[str, Any]:
    """Measure the way from cached chunks on the local disk to decoded arrays, chunk by chunk.

    Beside it a plain copy of the same bytes into new arrays, in seconds. One thread, a new
    reader each time, so that every chunk is verified and mapped again.
    """
    filled = _reader(place)
    rows, size = len(filled), filled.sequences_per_chunk
    numbers = [np.arange(first, min(first + size, rows)) for first in range(0, rows, size)]
    for some in numbers:
        filled.read(some)
    decode, copy = [], []
    for _ in range(_REPEATS):
        reader = _reader(place)
        reader.read(numbers[0][:1])
        started = time.perf_counter()
        for some in numbers:
            reader.read(some)
        decode.append(time.perf_counter() - started)
        chunks = [reader.read(some).records for some in numbers]
        started = time.perf_counter()
        for chunk in chunks:
            np.copyto(np.empty_like(chunk), chunk)
        copy.append(time.perf_counter() - started)
    return {"decode_seconds": decode, "copy_seconds": copy}
