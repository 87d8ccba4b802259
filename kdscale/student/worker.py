"""The distill stage on a worker: the student from the cache, then the control from labels alone.

Both read the same cached rows in the same order with the same seed and steps; only the weight of
the distillation loss differs, so that what the student gains over the control is the teacher's.
Where some labels are not known, the control reads only the rows whose are.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.cache.read.disk import DiskCache
from kdscale.cache.read.mixing import MixedReader
from kdscale.cache.read.reader import CacheReader, CacheSource
from kdscale.cache.read.subset import SubsetReader, known_labels
from kdscale.config import RunConfig
from kdscale.config.loss import check_defined
from kdscale.config.training import ZeroConfig
from kdscale.curriculum.sampler import SeenRows
from kdscale.data.prepared import Prepared, open_prepared
from kdscale.models.build import load_config_of
from kdscale.models.folder import ModelReference
from kdscale.models.head import TrainedModel
from kdscale.scratch import machine_folder
from kdscale.store import Store
from kdscale.student.attention import AttentionLoss, make_attention_loss
from kdscale.student.difficulty import Reader
from kdscale.student.hidden import HiddenLoss, make_hidden_loss
from kdscale.student.objective import DistillationLoss, LabelsLoss
from kdscale.student.stages import make_sampler, staged_steps
from kdscale.student.start import Start, plan_start
from kdscale.student.targets import LiveTeacher
from kdscale.train.balance import EQUAL, LabelWeights, class_weights
from kdscale.train.batches import batch_digest, row_kind
from kdscale.train.session import Session, run_session
from kdscale.workers import Worker, current_worker


def distill(job: dict[str, Any]) -> None:
    """A worker's loop. `job` has `sessions` (student first), `prepared` (a Store), `caches` (a
    CacheSource each), `expected` (the cache identity that the student needs), `teacher`
    (ModelReference) and `tables` (a Store for what the curriculum measures)."""
    worker = current_worker()
    sessions: list[Session] = [s for s in job["sessions"] if not s.is_complete()]
    if not sessions:
        return
    config = sessions[0].config
    prepared = open_prepared(job["prepared"])
    reader = open_cache(config, job["caches"], job["expected"])
    source = "live" if config.distill.targets == "live" else reader.codec.describe()["kind"]
    check_defined(config.distill.loss.divergence.kind, source)
    start = plan_start(config, prepared, job["teacher"], worker)
    for session in sessions:
        _train_arm(session, worker, prepared, reader, start, job["teacher"], job["tables"])


def open_cache(
    config: RunConfig, caches: Sequence[CacheSource], expected: dict[str, Any]
) -> CacheReader | MixedReader:
    """The cache, refused where it was not made for this run's tokenizer and vocabulary; several of
    them as one."""
    distill, folder = config.distill, None
    if distill.cache_disk_gib:
        folder = Path(distill.cache_folder) if distill.cache_folder else machine_folder("blocks")
    disk = DiskCache(folder, int(distill.cache_disk_gib * 2**30)) if folder else None
    memory_bytes = distill.cache_memory_mib << 20
    weights = [cache.weight for cache in caches]
    readers = [
        CacheReader(
            cache.store,
            expected=expected,
            segments=cache.segments,
            memory_bytes=int(memory_bytes * cache.weight / sum(weights)),
            disk=disk,
        )
        for cache in caches
    ]
    if len(readers) == 1:
        return readers[0]
    return MixedReader(readers, weights)


def live_teacher(
    config: RunConfig, teacher: ModelReference, worker: Worker, prepared: Prepared
) -> LiveTeacher | None:
    """The teacher beside its student, where the config asks for it."""
    if config.distill.targets == "cache":
        return None
    zero = ZeroConfig(stage=config.distill.live.zero)
    outputs = config.distill.live.layer_outputs
    kind = row_kind(config, prepared, config.distill.training.micro_batch_rows)
    return LiveTeacher(teacher, worker, zero, kind, outputs)


def layer_losses(
    config: RunConfig, start: Start, teacher: ModelReference
) -> tuple[HiddenLoss | None, AttentionLoss | None]:
    """The losses on hidden states and on attention, where the config asks for them; KdscaleError
    for layers that student or teacher have not."""
    live = config.distill.live
    if not live.layer_outputs:
        return None, None
    shapes = (start.config, load_config_of(teacher.local(weights=False), teacher.revision))
    own, theirs = (shape.get_text_config() for shape in shapes)
    depths = own.num_hidden_layers, theirs.num_hidden_layers
    widths = own.hidden_size, theirs.hidden_size
    hidden = make_hidden_loss(live.hidden, depths, widths) if live.hidden else None
    attention = make_attention_loss(live.attention, depths) if live.attention else None
    return hidden, attention


def _train_arm(
    session: Session,
    worker: Worker,
    prepared: Prepared,
    cached: CacheReader | MixedReader,
    start: Start,
    teacher: ModelReference,
    tables: Store,
) -> None:
    config, weights = session.config, EQUAL
    reader: Reader = cached
    if config.data.labels is not None:
        known = known_labels(cached)
        weights = LabelWeights(
            class_weights(config.data, prepared.training("cache"), worker.device),
            known_share=float(known.mean()),
        )
        if session.name == "control" and not known.all():
            # It learns from nothing else, so that its batches are full of them.
            reader = SubsetReader(cached, np.flatnonzero(known))
    distill, vocab_size = config.distill, prepared.outputs
    sampler = make_sampler(distill, reader, worker, vocab_size, config.seed)
    seen = SeenRows(sampler, len(reader))
    loss: LabelsLoss | DistillationLoss = LabelsLoss(weights)
    wrap = partial(TrainedModel, vocab_size=vocab_size)
    if session.name != "control":
        hidden, attention = layer_losses(config, start, teacher)
        live = live_teacher(config, teacher, worker, prepared)
        loss = DistillationLoss(config, reader.codec, live, hidden, attention, weights)
        wrap = partial(
            wrap,
            projections=hidden.projections(config.seed) if hidden is not None else (),
            gives_attention=attention is not None,
        )

    def extra(step: int) -> dict[str, float]:
        shown = sampler.metrics(step) | seen.metrics(step) | loss.metrics(step)
        shown["train/batch_digest"] = batch_digest(sampler.batch(step))
        return shown | {"cache_hit_share": _hit_share(reader.metrics)}

    run_session(
        session,
        worker,
        prepared,
        build=start.build,
        wrap=wrap,
        steps=lambda first, model: staged_steps(
            distill, worker, reader, sampler, tables, vocab_size, first, model
        ),
        compute_loss=loss,
        extra=extra,
        adaptive=loss.taid if isinstance(loss, DistillationLoss) else None,
    )


def _hit_share(blocks: dict[str, float]) -> float:
    """Of the blocks asked for so far the share that was in memory or on the local disk; NaN where
    none was asked for yet."""
    found = blocks["block_hits"] + blocks["disk_hits"]
    asked = found + blocks["blocks_fetched"]
    return found / asked if asked else math.nan
