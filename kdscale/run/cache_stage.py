"""The cache stage as its driver sees it: which rows are to be captured, into which cache.

A run fills a cache of its own, or appends the rows that another cache lacks to it, or reuses caches
as they are. What a student may read is always a number of generations: later appends change nothing
for it, while a repair does it good.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from kdscale.cache.codecs import open_codec
from kdscale.cache.commit.manifest import load_manifest, manifest_versions
from kdscale.cache.commit.plan import (
    create_or_load_plan,
    find_generation,
    load_plans,
    selection_hash,
)
from kdscale.cache.commit.writer import committed_shards
from kdscale.cache.format.packing import packable
from kdscale.cache.format.prior import Prior, count_prior, counted_rows
from kdscale.cache.origin import write_origin
from kdscale.cache.read.reader import CacheReader, CacheSource
from kdscale.data.rows.order import EvenRows
from kdscale.data.tokenizer import TOKENIZER_FILE
from kdscale.run.artifacts import RunArtifacts
from kdscale.store import PutIfAbsent, Store
from kdscale.teacher.capture import CaptureJob

_PRIOR_ROWS_AT_ONCE = 4096


def is_complete(run: RunArtifacts) -> bool:
    """Whether nothing is left to capture. `cache repair` takes commits of bad shards away, and the
    stage is then incomplete again."""
    if run.config.cache.reuse is not None:
        return all(manifest_versions(store) for store, _ in run.cache_stores)
    store = own_store(run)
    found = find_generation(store, run.rows_fingerprint, _request(run))
    if found is None:
        return run.config.cache.append_to is not None and len(_lacking(run, store, None)) == 0
    number, generation = found
    if not manifest_versions(store) or len(load_manifest(store).generations) <= number:
        return False
    return len(committed_shards(store, generation)) == len(generation.shards)


def plan_capture(run: RunArtifacts, put_if_absent: PutIfAbsent) -> CaptureJob:
    """What the workers are to capture; the plan is agreed on in the store, by `put_if_absent`."""
    config, store = run.config.cache, own_store(run)
    request = _request(run)
    found = find_generation(store, run.rows_fingerprint, request)
    if found is None and config.append_to is not None:
        # A clear error now rather than a second cache in the middle of the first.
        load_manifest(store)
    rows = _lacking(run, store, found[0] if found else None) if config.append_to else run.selected
    packed = config.pack and packable(open_codec(run.cache_identity["codec"]))
    generation = create_or_load_plan(
        store,
        run.cache_identity,
        data=run.rows_fingerprint,
        request=request,
        rows=len(rows),
        sequences_per_shard=config.sequences_per_shard,
        sequences_per_chunk=config.sequences_per_chunk,
        count_prior=partial(_count_prior, run, rows) if packed else None,
        put_if_absent=put_if_absent,
    )
    _write_origin(run, store)
    return CaptureJob(
        config=run.config,
        output=run.output,
        prepared=run.prepared_store,
        cache=store,
        teacher=run.teacher(),
        identity=run.cache_identity,
        plan=generation,
        selected=rows,
        put_if_absent=put_if_absent,
    )


def _write_origin(run: RunArtifacts, store: Store) -> None:
    """What a later run is told where the cache does not fit it."""
    config, teacher = run.config, run.teacher()
    facts = {
        "task": config.task,
        "teacher": {"source": teacher.source, "revision": teacher.revision},
        "tokenizer": run.prepared.manifest["tokenizer"],
        "data": config.data.model_dump(mode="json"),
    }
    folder = run.prepared.tokenizer_folder()
    write_origin(store, facts, (folder / TOKENIZER_FILE).read_bytes())


def readable_caches(run: RunArtifacts) -> list[CacheSource]:
    """What the student reads if it starts at this moment."""
    return [
        CacheSource(store, _generations(run, store), weight) for store, weight in run.cache_stores
    ]


def _generations(run: RunArtifacts, store: Store) -> int:
    """Of a cache that this run filled, the generations up to its own; else all there are."""
    found = find_generation(store, run.rows_fingerprint, _request(run))
    if run.config.cache.reuse is None and found is not None:
        return found[0] + 1
    return len(load_manifest(store).generations)


def own_store(run: RunArtifacts) -> Store:
    """The cache that this run fills or appends to."""
    ((store, _),) = run.cache_stores
    return store


def _request(run: RunArtifacts) -> str:
    return selection_hash(run.selected.count, run.selected.total)


def _lacking(run: RunArtifacts, store: Store, before: int | None) -> np.ndarray:
    """Of the selected rows those that the first `before` generations (by default all) lack, [rows]
    int64."""
    generations = len(load_plans(store)) if before is None else before
    known = CacheReader(store, generations=generations).statistics.sample_ids
    rows = run.selected[:]
    ours = run.prepared.training("cache").sample_ids[rows]
    as_one = np.dtype((np.void, ours.shape[1]))
    present = np.isin(
        np.ascontiguousarray(ours).view(as_one)[:, 0],
        np.ascontiguousarray(known).view(as_one)[:, 0],
    )
    return rows[~present]


def _count_prior(run: RunArtifacts, rows: np.ndarray | EvenRows) -> Prior:
    """The prior of the rows that are to be captured."""
    table = run.prepared.training("cache")
    counted = rows[counted_rows(len(rows), run.config.data.seq_len)]

    def texts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, len(counted), _PRIOR_ROWS_AT_ONCE):
            part = table.take(counted[first : first + _PRIOR_ROWS_AT_ONCE])
            yield part.input_ids, part.loss_mask

    return count_prior(texts(), run.prepared.vocab_size)
