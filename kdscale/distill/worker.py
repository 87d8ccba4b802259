"""The distill stage on a worker: the student from the cache, then the baseline from labels alone.

Both read the same cached rows in the same order with the same seed and steps; only the weight of
the distillation loss differs, so that what the student gains over the baseline is the teacher's.
Where some labels are not known, the baseline reads only the rows whose are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdscale.cache.read.concat import ConcatReader
from kdscale.cache.read.disk_cache import DiskCache
from kdscale.cache.read.reader import CacheReader, CacheSource
from kdscale.cache.read.subset import SubsetReader, known_labels
from kdscale.config import RunConfig
from kdscale.config.loss import check_defined
from kdscale.config.training import ZeroConfig
from kdscale.curriculum.sampler import SeenRows
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.distill.batches import MicroBatch
from kdscale.distill.curriculum import Reader, make_sampler, staged_steps
from kdscale.distill.initial_student import Start, plan_start
from kdscale.distill.layer_losses import (
    AttentionLoss,
    HiddenLoss,
    make_attention_loss,
    make_hidden_loss,
)
from kdscale.distill.objective import DistillationLoss, LabelsLoss
from kdscale.distill.targets import OnlineTeacher
from kdscale.distributed.rank import Rank, current_rank
from kdscale.models.head import ModelWithHead
from kdscale.models.hf_folder import ModelReference
from kdscale.models.load import load_config_of
from kdscale.store import Store
from kdscale.train.batches import batch_digest, sequence_spec
from kdscale.train.job import TrainingJob, run_session
from kdscale.train.label_weights import EQUAL, LabelWeights, class_weights
from kdscale.train.loop import Step
from kdscale.utils.local_cache_dir import local_cache_dir


@dataclass(frozen=True)
class DistillJob:
    """Training of a student and its baseline, as each worker does it."""

    sessions: Sequence[TrainingJob]  # the student's first
    prepared: Store
    caches: Sequence[CacheSource]
    expected: dict[str, Any]  # the fields of the cache's identity that the student needs
    teacher: ModelReference
    tables: Store  # for what the curriculum measures

    def run(self) -> None:
        """Train on this rank."""
        distill(self)


def distill(job: DistillJob) -> None:
    """Train the student and the baseline of `job` on this rank, with all others."""
    worker = current_rank()
    sessions = [session for session in job.sessions if not session.is_complete()]
    if not sessions:
        return
    config = sessions[0].config
    prepared = open_prepared(job.prepared)
    reader = open_cache(config, job.caches, job.expected)
    source = "online" if config.distill.targets == "online" else reader.codec.describe()["kind"]
    check_defined(config.distill.loss.divergence.kind, source)
    start = plan_start(config, prepared, job.teacher, worker)
    for session in sessions:
        _train_arm(session, worker, prepared, reader, start, job.teacher, job.tables)


def open_cache(
    config: RunConfig, caches: Sequence[CacheSource], expected: dict[str, Any]
) -> CacheReader | ConcatReader:
    """The cache, refused where it was not made for this run's tokenizer and vocabulary; several of
    them as one."""
    distill, folder = config.distill, None
    if distill.cache_disk_gib:
        folder = Path(distill.cache_folder) if distill.cache_folder else local_cache_dir("chunks")
    disk = DiskCache(folder, int(distill.cache_disk_gib * 2**30)) if folder else None
    memory_bytes = distill.cache_memory_mib << 20
    weights = [cache.weight for cache in caches]
    readers = [
        CacheReader(
            cache.store,
            expected=expected,
            generations=cache.generations,
            memory_bytes=int(memory_bytes * cache.weight / sum(weights)),
            disk=disk,
        )
        for cache in caches
    ]
    if len(readers) == 1:
        return readers[0]
    return ConcatReader(readers, weights)


def online_teacher(
    config: RunConfig, teacher: ModelReference, worker: Rank, prepared: Prepared
) -> OnlineTeacher | None:
    """The teacher beside its student, where the config asks for it."""
    if config.distill.targets == "cache":
        return None
    zero = ZeroConfig(stage=config.distill.online.zero)
    outputs = config.distill.online.layer_outputs
    kind = sequence_spec(config, prepared, config.distill.training.micro_batch_size)
    return OnlineTeacher(teacher, worker, zero, kind, outputs)


def layer_losses(
    config: RunConfig, start: Start, teacher: ModelReference
) -> tuple[HiddenLoss | None, AttentionLoss | None]:
    """The losses on hidden states and on attention, where the config asks for them; KdscaleError
    for layers that student or teacher have not."""
    online = config.distill.online
    if not online.layer_outputs:
        return None, None
    shapes = (start.config, load_config_of(teacher.local(weights=False), teacher.revision))
    own, theirs = (shape.get_text_config() for shape in shapes)
    depths = own.num_hidden_layers, theirs.num_hidden_layers
    widths = own.hidden_size, theirs.hidden_size
    hidden = make_hidden_loss(online.hidden, depths, widths) if online.hidden else None
    attention = make_attention_loss(online.attention, depths) if online.attention else None
    return hidden, attention


def _train_arm(
    session: TrainingJob,
    worker: Rank,
    prepared: Prepared,
    cached: CacheReader | ConcatReader,
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
        if session.name == "baseline" and not known.all():
            # It learns from nothing else, so that its batches are full of them.
            reader = SubsetReader(cached, np.flatnonzero(known))
    distill, vocab_size = config.distill, prepared.outputs
    sampler = make_sampler(distill, reader, worker, vocab_size, config.seed)
    seen = SeenRows(sampler, len(reader))
    loss: LabelsLoss | DistillationLoss = LabelsLoss(weights)
    wrap = partial(ModelWithHead, vocab_size=vocab_size)
    if session.name != "baseline":
        hidden, attention = layer_losses(config, start, teacher)
        online = online_teacher(config, teacher, worker, prepared)
        loss = DistillationLoss(config, reader.codec, online, hidden, attention, weights)
        wrap = partial(
            wrap,
            projections=hidden.projections(config.seed) if hidden is not None else (),
            gives_attention=attention is not None,
        )

    def steps(first: int, model: torch.nn.Module) -> Iterator[Step[MicroBatch]]:
        batches = staged_steps(distill, worker, reader, sampler, tables, vocab_size, first, model)
        for step, batch in enumerate(batches, first):
            if worker.rank == 0:
                seen.add(step, batch.indices)
            yield batch

    def extra(step: int, indices: np.ndarray) -> dict[str, float]:
        shown = sampler.metrics(step, indices) | seen.metrics() | loss.metrics(step)
        shown["train/batch_digest"] = batch_digest(indices)
        return shown | {"cache_hit_share": _hit_share(reader.metrics)}

    run_session(
        session,
        worker,
        prepared,
        build=start.build,
        wrap=wrap,
        steps=steps,
        compute_loss=loss,
        extra=extra,
        adaptive=loss.taid if isinstance(loss, DistillationLoss) else None,
    )


def _hit_share(counts: dict[str, float]) -> float:
    """Of the chunks asked for so far the share that was in memory or on the local disk; NaN where
    none was asked for yet."""
    found = counts["chunk_hits"] + counts["disk_hits"]
    asked = found + counts["chunks_fetched"]
    return found / asked if asked else math.nan
