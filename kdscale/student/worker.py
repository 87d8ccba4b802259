"""The distill stage on a worker: the student from the cache, then the control from labels alone.

Both read the same cached rows in the same order with the same seed and steps; only the weight of
the distillation loss differs, so that what the student gains over the control is the teacher's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.cache.codecs import Codec
from kdscale.cache.read.disk import DiskCache
from kdscale.cache.read.mixing import MixedReader
from kdscale.cache.read.reader import CacheReader, CacheSource
from kdscale.cache.rows import CachedRows, RowStats
from kdscale.config import RunConfig
from kdscale.config.curriculum import CurriculumConfig
from kdscale.curriculum.sampler import CurriculumSampler, SeenRows
from kdscale.curriculum.schedule import value_at
from kdscale.data.prepared import Prepared, open_prepared
from kdscale.models.build import build_model, check_vocabulary, make_config
from kdscale.models.folder import ModelReference
from kdscale.models.forward import compute_logits, next_token_labels, row_tensors
from kdscale.models.layers import build_from_layers
from kdscale.scratch import machine_folder
from kdscale.student.losses import cross_entropy_sum, soft_cross_entropy_sum, target_entropy_sum
from kdscale.train.batches import rank_rows, split_micro_batches
from kdscale.train.loop import LossSums, Step
from kdscale.train.session import Session, run_session
from kdscale.types import SparseTargets
from kdscale.workers import Worker, current_worker


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward with what the cache says of them."""

    ids: torch.Tensor  # [m, T] int64
    segments: torch.Tensor  # [m, T] int64
    mask: torch.Tensor  # [m, T] bool
    payload: torch.Tensor  # [m, T, bytes_per_position] uint8
    entropy: torch.Tensor  # [m] float32: mean teacher entropy over the row's targets, nats


def distill(job: dict[str, Any]) -> None:
    """A worker's loop. `job` has `sessions` (student first), `prepared` (a Store), `caches` (a
    CacheSource each), `expected` (the cache identity that the student needs) and `teacher`
    (ModelReference)."""
    worker = current_worker()
    sessions: list[Session] = [s for s in job["sessions"] if not s.is_complete()]
    if not sessions:
        return
    config = sessions[0].config
    prepared = open_prepared(job["prepared"])
    reader = open_cache(config, job["caches"], job["expected"])
    for session in sessions:
        _train_arm(session, worker, prepared, reader, job["teacher"])


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


def build_student(
    config: RunConfig, prepared: Prepared, teacher: ModelReference
) -> PreTrainedModel:
    """The student before its first step: random from a config, or from layers of the teacher."""
    student = config.distill.student
    if student.teacher_layers is not None:
        folder = _weights_folder(teacher)
        model = build_from_layers(folder, student.teacher_layers, config.seed)
    else:
        assert student.model is not None
        vocab_size = prepared.vocab_size
        shape = make_config(student.model, vocab_size, prepared.special_ids, config.data.row_length)
        model = build_model(shape, config.seed)
    check_vocabulary(model.config, prepared.vocab_size, "student")
    return model


def difficulty(config: CurriculumConfig, stats: RowStats) -> np.ndarray:
    """Difficulty [R] of every cached row, larger is harder."""
    return np.asarray(
        {"entropy": stats.entropy, "nll": stats.nll, "length": stats.length}[config.difficulty]
    )


def _train_arm(
    session: Session,
    worker: Worker,
    prepared: Prepared,
    reader: CacheReader | MixedReader,
    teacher: ModelReference,
) -> None:
    config, training = session.config, session.training
    sampler = CurriculumSampler(
        config.distill.curriculum,
        difficulty(config.distill.curriculum, reader.statistics),
        batch_rows=training.batch_rows,
        steps=training.steps,
        seed=config.seed,
        rows_per_block=reader.rows_per_block,
    )
    seen = SeenRows(sampler, len(reader))
    loss = DistillationLoss(
        config, reader.codec, prepared.vocab_size, labels_only=session.name == "control"
    )

    def extra(step: int) -> dict[str, float]:
        metrics = sampler.metrics(step) | seen.metrics(step)
        return metrics | {"kd_weight": loss.kd_weight(step)}

    run_session(
        session,
        worker,
        prepared,
        build=lambda: build_student(config, prepared, teacher),
        steps=lambda start: read_steps(session, worker, reader, sampler, start),
        compute_loss=loss,
        extra=extra,
    )


def read_steps(
    session: Session,
    worker: Worker,
    reader: CacheReader | MixedReader,
    sampler: CurriculumSampler,
    start: int,
) -> Iterator[Step[MicroBatch]]:
    """This rank's share of every step from `start` on, read ahead from the cache."""
    training = session.training
    size = training.micro_batch_rows
    world = worker.world_size

    def parts(step: int) -> list[tuple[np.ndarray, np.ndarray]]:
        batch = sampler.batch(step)
        mine = rank_rows(batch, worker.rank, world)
        return list(split_micro_batches(mine, batch, size, world))

    steps = range(start, training.steps)
    orders = (np.concatenate([rows for rows, _ in parts(step)]) for step in steps)
    ahead = session.config.distill.prefetch_batches
    for step, cached in zip(steps, reader.batches(orders, ahead), strict=True):
        micro_batches, first = [], 0
        for rows, valid in parts(step):
            part = slice(first, first + len(rows))
            micro_batches.append(to_device(cached, part, valid, worker.device))
            first += len(rows)
        yield Step(micro_batches, sum(int(batch.mask.sum()) for batch in micro_batches))


def to_device(
    cached: CachedRows, part: slice, valid: np.ndarray, device: torch.device
) -> MicroBatch:
    """Rows `part` of `cached` as tensors; rows that are not `valid` ([m] bool) get an empty
    mask."""
    ids, segments, mask = row_tensors(cached.rows.take(np.arange(part.start, part.stop)), device)
    return MicroBatch(
        ids,
        segments,
        mask & torch.from_numpy(valid).to(device)[:, None],
        torch.from_numpy(cached.payload[part]).to(device),
        torch.from_numpy(cached.entropy[part]).to(device),
    )


class DistillationLoss:
    """w * distillation + (1 - w) * cross-entropy, with w scheduled over the steps."""

    def __init__(
        self, config: RunConfig, codec: Codec, vocab_size: int, *, labels_only: bool
    ) -> None:
        self._schedule = config.distill.loss.kd_weight
        self._steps = config.distill.training.steps
        self._temperature = config.cache.temperature
        self._codec = codec
        self._vocab_size = vocab_size
        self._labels_only = labels_only

    def kd_weight(self, step: int) -> float:
        """w at `step`; 0 for the control."""
        return 0.0 if self._labels_only else value_at(self._schedule, step, self._steps)

    def __call__(self, model: torch.nn.Module, batch: MicroBatch, step: int) -> LossSums:
        """Sums over the batch's targets. Logged: `loss` is what is trained on, `ce_loss` the
        cross-entropy on the labels, `kl` the KL to the teacher."""
        weight = self.kd_weight(step)
        logits = compute_logits(model, batch.ids, batch.segments, self._vocab_size)[batch.mask]
        labels = next_token_labels(batch.ids)[batch.mask]
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight < 1):
            cross_entropy = cross_entropy_sum(logits, labels)
        if self._labels_only:
            on_labels = cross_entropy.detach()
            return LossSums(cross_entropy, {"loss": on_labels, "ce_loss": on_labels})
        targets = self._codec.decode(batch.payload[batch.mask])
        distillation = soft_cross_entropy_sum(logits, targets, self._temperature)
        if isinstance(targets, SparseTargets) and targets.ghost is None:
            # Sampled targets: the teacher's own entropy makes this an unbiased estimate of the KL.
            entropy = (batch.entropy * batch.mask.sum(dim=1)).sum()
        else:
            entropy = target_entropy_sum(targets)
        kl = distillation.detach() - entropy * self._temperature**2
        objective = weight * distillation + (1 - weight) * cross_entropy
        parts = {"loss": objective.detach(), "ce_loss": cross_entropy.detach(), "kl": kl}
        return LossSums(objective, parts)


def _weights_folder(teacher: ModelReference) -> Path:
    if not teacher.is_hub_name:
        return Path(teacher.local())
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(teacher.source, revision=teacher.revision))
