"""Checkpoint of the prepare stage: finished parts in its store; a restart makes only the rest.

    work/<identity>/<source>/documents/00003-00012.texts    a part: some documents of batch 3
    work/<identity>/<source>/documents/00003-00012.facts    their hashes and outcomes; written later
    work/<identity>/<source>/documents/00003.end            the batch is complete; documents a part
    work/<identity>/tokenizer.json                          the trained tokenizer is stored
    work/<identity>/<split>/<tokenizer>/00003-00012.tokens  the tokens of the part's documents

Batches follow from the inputs of a corpus and parts from its text, whatever the cluster. Tables are
Arrow IPC with zstd. An object is whole or absent, as every object of a store.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa

from kdscale.data.sources.readers import InputShard
from kdscale.errors import KdscaleError
from kdscale.store import Store

WORK = "work"
SINGLES_PER_BATCH = 64  # files of a single document
MOST_BATCHES = 4096
_PARALLEL_DELETES = 16


@dataclass(frozen=True)
class Part:
    """Documents `first` to `stop` of a source."""

    name: str
    first: int
    stop: int


def in_batches(inputs: list[InputShard]) -> list[list[InputShard]]:
    """Group inputs of one source into what one task reads.

    A batch is a container or some single documents; several containers where there are very many.
    """
    batches = []
    for _, found in groupby(inputs, lambda shard: shard.source):
        own = list(found)
        least = SINGLES_PER_BATCH if own[0].reader in ("file", "metadata") else 1
        size = max(least, -(-len(own) // MOST_BATCHES))
        batches += [own[at : at + size] for at in range(0, len(own), size)]
    return batches


def part_name(batch: int, part: int) -> str:
    """Return the name of a batch's part; names sort as the documents do."""
    return f"{batch:05d}-{part:05d}"


def batch_of(name: str) -> int:
    """Return the number of a part's batch."""
    return int(name.partition("-")[0])


def write_end(store: Store, batch: int, documents: list[int]) -> None:
    """Mark a batch complete, with the number of documents of each part."""
    store.put(f"{batch:05d}.end", json.dumps(documents).encode())


def read_ends(store: Store) -> dict[int, list[int]]:
    """Return the complete batches, and the numbers of documents of their parts."""
    keys = [key for key in store.list() if key.endswith(".end")]
    return {int(key.removesuffix(".end")): json.loads(store.get(key)) for key in keys}


def whole_parts(store: Store, batch: int) -> list[int]:
    """Return the numbers of documents of the parts that an interrupted batch has so far."""
    present, found = set(store.list(f"{batch:05d}-")), list[int]()
    while (key := f"{part_name(batch, len(found))}.facts") in present:
        found.append(sum(table.num_rows for table in read_batches(store, key)))
    return found


def all_parts(ends: dict[int, list[int]], limit: int | None) -> list[Part]:
    """Return the parts of all batches in order; documents beyond the `limit` are in none."""
    parts, first = list[Part](), 0
    for batch in sorted(ends):
        for number, documents in enumerate(ends[batch]):
            stop = first + documents if limit is None else min(first + documents, limit)
            if stop > first:
                parts.append(Part(part_name(batch, number), first, stop))
            first = stop
    return parts


def write_batches(
    store: Store, key: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> None:
    """Write record batches as one object, holding only their compressed form."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    store.put(key, sink.getvalue().to_pybytes())


def read_batches(store: Store, key: str) -> Iterator[Any]:
    """Yield the record batches of an object. Raises KdscaleError where it is damaged."""
    path = store.local_path(key)
    try:
        source = pa.BufferReader(store.get(key)) if path is None else pa.memory_map(str(path))
        with source, pa.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                yield file.get_batch(number)
    except pa.ArrowInvalid as error:
        raise KdscaleError(
            f"{key} in {store} is damaged: {error}", f"Delete {store} and run the stage again."
        ) from error


def clear_work(store: Store, keep: str | None = None) -> None:
    """Delete the checkpoints of all prepares but that of the identity `keep`."""
    kept = f"{WORK}/{keep}/"
    keys = [key for key in store.list(f"{WORK}/") if keep is None or not key.startswith(kept)]
    with ThreadPoolExecutor(_PARALLEL_DELETES) as pool:
        for _ in pool.map(store.delete, keys):
            pass
