"""The numbers behind a cache: where its bytes go, how its rows are spread, what lies about unused.

Shards are alike, so row statistics and the split of bytes come from a bounded number of them,
evenly spread; sizes and counts are of all.
"""

import math
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from kdscale.cache.commit.manifest import Manifest, load_manifest, manifest_versions
from kdscale.cache.format.checked_read import read_chunk, read_index
from kdscale.cache.format.records import Shard
from kdscale.cache.maintain.gc import gc
from kdscale.cache.maintain.inspect import inspect
from kdscale.cache.prefetch import ordered_map
from kdscale.cache.rows import RowStats
from kdscale.store import Store

_THREADS = 16
_SHARDS_FOR_ROWS = 1024
_SHARDS_FOR_BYTES = 16
_MAGIC_BYTES = 8
_STORED_AS = pa.ipc.IpcWriteOptions(compression="zstd")
_QUANTILES = {"min": 0, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1}


def stats(store: Store) -> dict[str, Any]:
    """Numbers of the latest manifest and of its store. Sizes in bytes, entropy and nll in nats.

    `bytes_per_position` splits into parts: the payload (the targets), the tokens (ids, masks and
    the rest of the data objects), the index, the prior, and the manifest's table of shards.
    KdscaleError where there is no cache, or where a record or index is damaged.
    """
    manifest, facts = load_manifest(store), inspect(store)
    garbage = gc(store, grace_seconds=-math.inf, dry_run=True)
    commits = len(store.list("commits/"))
    return {
        "url": str(store),
        "versions": sorted(manifest_versions(store)),
        "rows": facts["rows"],
        "targets": facts["targets"],
        "bytes": facts["bytes"],
        "bytes_per_position": _parts(store, manifest, facts),
        "shards": {
            "count": len(manifest.shards),
            "committed_beyond_manifest": max(0, commits - len(manifest.shards)),
            "bytes": _spread(np.array([shard.length for shard in manifest.shards])),
            "index_bytes": _spread(np.array([shard.index_length for shard in manifest.shards])),
        },
        "row_statistics": _row_statistics(store, manifest),
        "unnamed": {"objects": len(garbage.entries), "bytes": garbage.bytes},
    }


def _parts(store: Store, manifest: Manifest, facts: dict[str, Any]) -> dict[str, float]:
    """Bytes a position by part; they add up to all bytes."""
    data = sum(shard.length for shard in manifest.shards)
    index = manifest.shards.nbytes - data
    share = _payload_share(store, manifest)
    sizes = {
        "payload": data * share,
        "tokens": data * (1 - share),
        "index": index,
        "prior": facts["prior_bytes"],
        "manifest": manifest.record.shards.length,
    }
    return {"all": facts["bytes_per_position"]} | {
        part: size / facts["positions"] for part, size in sizes.items()
    }


def _payload_share(store: Store, manifest: Manifest) -> float:
    """Share of the data objects' bytes that is payload, from one chunk of each of some shards."""
    shards = _some_shards(manifest, _SHARDS_FOR_BYTES)
    sizes = list(ordered_map(partial(_payload_size, store), shards, threads=4, ahead=8))
    return sum(payload for payload, _ in sizes) / sum(whole for _, whole in sizes)


def _payload_size(store: Store, shard: Shard) -> tuple[int, int]:
    """Bytes of the payload in a shard's first chunk, and of the whole chunk."""
    chunk = read_index(store, shard).chunks[0]
    # Behind its magic word an Arrow file is a stream that begins with the schema.
    head = store.get_range(shard.object, 0, chunk.offset)[_MAGIC_BYTES:]
    message = pa.ipc.read_message(pa.py_buffer(read_chunk(store, shard, chunk)))
    batch = pa.ipc.read_record_batch(message, pa.ipc.open_stream(head).schema)
    whole = _stored_size(batch)
    return whole - _stored_size(batch.drop_columns(["payload"])), whole


def _stored_size(batch: pa.RecordBatch) -> int:
    """Bytes of the batch, compressed as in a data object."""
    sink = pa.MockOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_STORED_AS) as writer:
        writer.write_batch(batch)
    return sink.size()


def _row_statistics(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Return the spread of entropy, nll and targets over rows; without targets none of entropy."""
    shards = _some_shards(manifest, _SHARDS_FOR_ROWS)
    parts = list(
        ordered_map(partial(_index_stats, store), shards, threads=_THREADS, ahead=_THREADS)
    )
    length = np.concatenate([part.length for part in parts])
    entropy = np.concatenate([part.entropy for part in parts])[length > 0]
    nll = np.concatenate([part.nll for part in parts])[length > 0]
    return {
        "rows": len(length),
        "rows_without_targets": int((length == 0).sum()),
        "entropy": _spread(entropy),
        "nll": _spread(nll),
        "targets": _spread(length),
    }


def _index_stats(store: Store, shard: Shard) -> RowStats:
    return read_index(store, shard).stats


def _some_shards(manifest: Manifest, count: int) -> list[Shard]:
    """At most `count` shards, evenly spread over the cache."""
    shards = len(manifest.shards)
    numbers = np.linspace(0, shards - 1, min(count, shards)).astype(np.int64)
    return [manifest.shards[number] for number in numbers.tolist()]


def _spread(values: np.ndarray) -> dict[str, float]:
    """Mean and quantiles of the values that are known; nothing of no values."""
    values = values[~np.isnan(values)]
    if not len(values):
        return {}
    found = np.quantile(values, list(_QUANTILES.values())).tolist()
    return {"mean": float(values.mean()), **dict(zip(_QUANTILES, found, strict=True))}
