"""Scale: plan, manifest, index and order of a simulated cache of 10^12 tokens and 1,024 ranks.

    python benchmarks/scale.py [--quick]

Each part is kdscale's code on records of the full size, in a fresh process; only rows and payload
are left out. It runs at a quarter of the size too, so that growth shows: shards may cost linearly,
tokens must cost nothing. Object counts and request rates follow from the plan.

The last line is one JSON object, also kept in results/scale.json. --quick takes a hundredth of the
tokens, and keeps nothing.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import Quick, Row, goal, log, report
from kdscale.cache.commit.manifest import Manifest
from kdscale.cache.commit.plan import create_or_load_plan, selection_hash
from kdscale.cache.commit.shards import ShardTable, decode_table, encode_table, make_table
from kdscale.cache.format.records import Commit, Generation, ManifestRecord, record_bytes
from kdscale.cache.read.chunk_store import ChunkMap
from kdscale.cache.read.order import EpochOrder
from kdscale.cache.spec import FORMAT
from kdscale.config import fingerprint
from kdscale.data.rows.order import EvenRows
from kdscale.store import open_store

TOKENS = 10**12
RANKS = 1024
ROW_LENGTH = 4096
BYTES_PER_TOKEN = 18.5  # stored, tokens and index included: results/codec_fidelity.json
OBJECT_BYTES = 64 << 20
CHUNK_BYTES = 2 << 20
BATCH_ROWS = 4096
TOKENS_PER_SECOND_OF_A_RANK = 20_000
CAPTURE_TOKENS_PER_SECOND_OF_A_RANK = 5_000
IDENTITY = {"format": FORMAT, "teacher": "simulated", "seq_len": ROW_LENGTH}


def generation_of(tokens: int) -> Generation:
    """Return the plan of a cache of so many tokens."""
    rows = tokens // ROW_LENGTH
    row_bytes = ROW_LENGTH * BYTES_PER_TOKEN
    with tempfile.TemporaryDirectory() as folder:
        return create_or_load_plan(
            open_store(folder),
            IDENTITY,
            data="simulated",
            request=selection_hash(rows, rows),
            rows=rows,
            sequences_per_shard=int(OBJECT_BYTES / row_bytes),
            sequences_per_chunk=int(CHUNK_BYTES / row_bytes),
        )


def table_of(generation: Generation) -> ShardTable:
    """Read back a commit for every shard, and return the table."""

    def commits() -> Any:
        for number, rows in enumerate(generation.shards):
            commit = Commit(
                shard=number,
                digest=f"{number:032x}",
                length=OBJECT_BYTES,
                index_digest=f"{number:032x}",
                index_length=32 * len(rows),
                rows=len(rows),
                targets=len(rows) * ROW_LENGTH,
                attempt="0" * 32,
                seconds=1.0,
            )
            yield Commit.model_validate_json(record_bytes(commit)).as_shard()

    return make_table(commits(), len(generation.shards))


def plan(tokens: int) -> Row:
    """Make the plan, read it back, and take the shards that one of the ranks captures."""
    generation = generation_of(tokens)
    rows = EvenRows(generation.rows, generation.rows)
    mine = generation.shards[7::RANKS]
    taken = sum(len(rows[shard.start : shard.stop]) for shard in mine)
    return {"shards": len(generation.shards), "rows_of_a_rank": taken}


def publish(tokens: int) -> Row:
    """Encode all commits as the table of shards."""
    generation = generation_of(tokens)
    table = encode_table(table_of(generation))
    return {"shards": len(generation.shards), "manifest_bytes": len(table)}


def open_manifest(tokens: int, table: bytes) -> Row:
    """Open the manifest, as every reader does when it starts."""
    generation = generation_of(tokens)
    shards = decode_table(table)
    record = ManifestRecord(
        format=FORMAT,
        version=1,
        identity=IDENTITY,
        fingerprint=fingerprint(IDENTITY),
        created="",
        generations=(generation,),
        shards={"digest": "0" * 32, "length": len(table)},
    )
    manifest = Manifest(record, shards)
    return {
        "shards": len(manifest.shards),
        "rows": manifest.rows,
        "targets": manifest.shards.targets,
    }


def order(tokens: int) -> Row:
    """Locate the rows of 1,000 global batches from the middle of an epoch."""
    generation = generation_of(tokens)
    epoch = EpochOrder(generation.rows, 0, generation.sequences_per_chunk, 4096)
    chunks = ChunkMap((generation,))
    first = generation.rows // 2
    opened: set[int] = set()
    for step in range(1000):
        positions = np.arange(first + step * BATCH_ROWS, first + (step + 1) * BATCH_ROWS)
        mine = epoch.rows_at(positions)[7::RANKS]
        numbers, _ = chunks.locate(mine)
        opened.update(numbers.tolist())
    return {"steps": 1000, "chunks_opened_by_a_rank": len(opened)}


PARTS: dict[str, Callable[..., Row]] = {
    "plan": plan,
    "publish": publish,
    "open_manifest": open_manifest,
    "order": order,
}


def measured(part: str, *arguments: Any) -> Row:
    """Return seconds and growth of the peak memory of one part, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_measure, args=(queue, part, arguments))
    process.start()
    result = queue.get()
    process.join()
    return {"part": part, "tokens": arguments[0], **result}


def _measure(queue: Any, part: str, arguments: tuple[Any, ...]) -> None:
    # A small one first: late imports are not measured.
    generation_of(10**8)
    before, started = _peak_bytes(), time.perf_counter()
    result = PARTS[part](*arguments)
    seconds = time.perf_counter() - started
    queue.put({"seconds": seconds, "peak_bytes": _peak_bytes() - before, **result})


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def counts(tokens: int) -> Row:
    """Return the objects in the store and the requests a second that it sees."""
    generation = generation_of(tokens)
    shards = len(generation.shards)
    chunks = shards * -(-generation.sequences_per_shard // generation.sequences_per_chunk)
    chunk_tokens = generation.sequences_per_chunk * ROW_LENGTH
    shard_tokens = generation.sequences_per_shard * ROW_LENGTH
    capture = RANKS * CAPTURE_TOKENS_PER_SECOND_OF_A_RANK / shard_tokens
    reading = RANKS * TOKENS_PER_SECOND_OF_A_RANK
    return {
        "part": "store",
        "tokens": tokens,
        "objects": 3 * shards + 3,
        "bytes": int(tokens * BYTES_PER_TOKEN),
        "chunks": chunks,
        # Two objects with their sizes, the commit, and the sizes again.
        "capture_puts_per_second": 3 * capture,
        "capture_heads_per_second": 4 * capture,
        "list_requests_of_a_start": -(-shards // 1000),
        "publish_gets": shards,
        # Each chunk and each shard's index is fetched once an epoch and machine of 8 ranks.
        "reading_gets_per_second": reading / chunk_tokens + reading / shard_tokens,
        "reading_bytes_per_second": reading * BYTES_PER_TOKEN,
    }


def main(quick: Quick = False) -> None:
    """Measure every part at a quarter of the size and at full size."""
    tokens = TOKENS // 100 if quick else TOKENS
    rows = [counts(tokens)]
    for part in PARTS:
        for size in (tokens // 4, tokens):
            more = [encode_table(table_of(generation_of(size)))] if part == "open_manifest" else []
            rows.append(measured(part, size, *more))
            log(rows[-1])
    goals = [growth(rows, part, figure) for part in PARTS for figure in ("seconds", "peak_bytes")]
    report("scale", rows, goals, keep=not quick)


def growth(rows: list[Row], part: str, figure: str) -> Row:
    """Return the growth of a figure when everything is four times as much: 4 is linear.

    Figures below 50 ms or 2 MiB are noise and count as that.
    """
    least = {"seconds": 0.05, "peak_bytes": 2 << 20}[figure]
    quarter, whole = (max(least, row[figure]) for row in rows if row["part"] == part)
    return goal(f"{part}_{figure}_growth_at_4x", whole / quarter, "<=5")


if __name__ == "__main__":
    typer.run(main)
