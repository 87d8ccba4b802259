"""The cache stage: the teacher's distributions over the training sequences, captured once.

A run fills a new cache, or appends to another cache the sequences that it lacks, or reuses caches
as they are.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from kdscale.cache.codecs import open_codec
from kdscale.cache.commit.manifest import load_manifest, manifest_versions
from kdscale.cache.commit.plan import create_or_load_plan, find_generation, load_plans
from kdscale.cache.commit.writer import committed_shards
from kdscale.cache.format.packing import packable
from kdscale.cache.format.prior import Prior, count_prior, counted_rows
from kdscale.cache.maintain.inspect import inspect
from kdscale.cache.origin import write_origin
from kdscale.cache.read.reader import CacheReader
from kdscale.data.rows.order import EvenRows
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.record import RunRecord
from kdscale.run.stages.base import Stage, StageContext, check_other_caches
from kdscale.store import PutIfAbsent, Store
from kdscale.teacher.capture import CaptureJob
from kdscale.workers.commit_actor import open_committer

_PRIOR_ROWS_AT_ONCE = 4096


def _is_complete(run: RunArtifacts, record: RunRecord) -> bool:
    """Return whether nothing is left to capture.

    `cache repair` removes commits of bad shards: the stage is then incomplete again.
    """
    if run.config.cache.reuse is not None:
        return all(manifest_versions(store) for store, _ in run.cache_stores)
    store = own_store(run)
    found = find_generation(store, run.rows_fingerprint, run.selection_hash)
    if found is None:
        return run.config.cache.append_to is not None and len(_lacking(run, store, None)) == 0
    number, generation = found
    if not manifest_versions(store) or len(load_manifest(store).generations) <= number:
        return False
    return len(committed_shards(store, generation)) == len(generation.shards)


def _make(context: StageContext) -> list[str]:
    """Capture what the cache lacks."""
    run = context.run
    config = run.config.cache
    if config.reuse is not None:
        for store, _ in run.cache_stores:
            load_manifest(store)
        return [f"reuses {', '.join(str(store) for store, _ in run.cache_stores)}"]
    # One probe serves all caches of an output.
    probed = None if config.append_to else run.output
    with open_committer(own_store(run), probed) as put_if_absent:
        job = plan_capture(run, put_if_absent)
        context.groups.run(job, config.capture.workers, context.progress)
    facts = inspect(job.cache)
    return [
        f"{facts['rows']:,} sequences, {facts['targets']:,} targets, {facts['bytes']:,} bytes, "
        f"{facts['bytes_per_position']:.1f} stored bytes a position"
    ]


def own_store(run: RunArtifacts) -> Store:
    """Return the cache that this run fills or appends to."""
    ((store, _),) = run.cache_stores
    return store


def plan_capture(run: RunArtifacts, put_if_absent: PutIfAbsent) -> CaptureJob:
    """Return the workers' job, whose plan is created or found in the store."""
    config, store = run.config.cache, own_store(run)
    found = find_generation(store, run.rows_fingerprint, run.selection_hash)
    if found is None and config.append_to is not None:
        # A clear error now rather than a second cache in the middle of the first.
        load_manifest(store)
    rows = _lacking(run, store, found[0] if found else None) if config.append_to else run.selected
    packed = config.pack and packable(open_codec(run.cache_identity["codec"]))
    generation = create_or_load_plan(
        store,
        run.cache_identity,
        data=run.rows_fingerprint,
        request=run.selection_hash,
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
    """Write what the error of a later run names if the cache does not fit it."""
    config, teacher = run.config, run.teacher()
    facts = {
        "task": config.task,
        "teacher": {"source": teacher.source, "revision": teacher.revision},
        "tokenizer": run.prepared.manifest["tokenizer"],
        "data": config.data.model_dump(mode="json"),
    }
    write_origin(store, facts, run.prepared.tokenizer_folder())


def _lacking(run: RunArtifacts, store: Store, before: int | None) -> np.ndarray:
    """Return the selected sequences that the first `before` generations (all if None) lack.

    Their numbers, [sequences] int64.
    """
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
    """Return the prior of the sequences that are to be captured."""
    table = run.prepared.training("cache")
    counted = rows[counted_rows(len(rows), run.config.data.seq_len)]

    def texts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, len(counted), _PRIOR_ROWS_AT_ONCE):
            part = table.take(counted[first : first + _PRIOR_ROWS_AT_ONCE])
            yield part.input_ids, part.loss_mask

    return count_prior(texts(), run.prepared.vocab_size)


STAGE = Stage(
    name="cache",
    fingerprint=lambda run: run.cache_fingerprint,
    is_complete=_is_complete,
    make=_make,
    check=check_other_caches,
    comes_from_base=True,
)
