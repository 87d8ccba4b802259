"""The distill stage on a worker: the student from the cache, then the baseline from labels alone.

Both read the same cached sequences in the same order with the same seed and steps; only the weight
of the distillation loss differs, so that what the student gains over the baseline is the teacher's.
Where some labels are not known, the baseline reads only the sequences that have them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.cache.read.concat import ConcatReader
from kdscale.cache.read.opening import open_reader
from kdscale.cache.read.reader import CacheReader, CacheSource
from kdscale.cache.read.subset import SubsetReader, known_labels
from kdscale.config.loss import check_alignable, check_defined
from kdscale.curriculum.sampler import SeenRows
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.distill.aligned_reader import AlignedReader, CachedReader, Reader
from kdscale.distill.alignment.student_data import AlignedPrepared, StudentTokenizer, class_map
from kdscale.distill.batches import MicroBatch
from kdscale.distill.before import BeforeJob
from kdscale.distill.curriculum import make_sampler, staged_steps
from kdscale.distill.layer_losses import make_layer_losses
from kdscale.distill.objective import DistillationLoss, LabelsLoss
from kdscale.distill.student_init import StudentInit, init_student
from kdscale.distill.targets import open_online_teacher
from kdscale.distributed.rank import Rank, current_rank
from kdscale.models.adapter_folder import BASE as COPY
from kdscale.models.head import ModelWithHead
from kdscale.models.hf_folder import ModelReference
from kdscale.models.lora import Adapters, Base, add_adapters
from kdscale.store import Store
from kdscale.train.backends.base import Backend
from kdscale.train.batches import batch_digest
from kdscale.train.job import TrainingJob, run_training
from kdscale.train.label_loss import EQUAL, LabelWeights, class_weights
from kdscale.train.loop import MicroBatchLoss, StatefulLoss, Step


@dataclass(frozen=True)
class DistillJob:
    """Training of a student and its baseline, as each worker does it."""

    trainings: Sequence[TrainingJob]  # the student's first
    prepared: Store
    caches: Sequence[CacheSource]
    expected: dict[str, Any]  # the fields of the cache's identity that the student needs
    teacher: ModelReference | None  # None: the run has none, and the cache is that of another
    tables: Store  # for what the curriculum measures
    tokenizer: StudentTokenizer | None = None  # the student's own, where it has one
    before: BeforeJob | None = None
    """To keep the student before its first step, where it is evaluated too."""

    def run(self) -> None:
        """Train on this rank, with all others."""
        worker = current_rank()
        trainings = [training for training in self.trainings if not training.is_complete()]
        before = self.before
        # Rank 0 decides for all: it may have written it before another looks.
        if before is None or worker.broadcast(before.is_complete()):
            before = None
        if not trainings and before is None:
            return
        config = self.trainings[0].config
        prepared = self.data(open_prepared(self.prepared))
        distill = config.distill
        reader = open_reader(
            self.caches,
            expected=self.expected,
            memory_mib=distill.cache_memory_mib,
            disk_gib=distill.cache_disk_gib,
            folder=distill.cache_folder,
        )
        targets = distill.targets
        source = "online" if targets == "online" else reader.codec.describe()["kind"]
        check_defined(distill.loss.divergence.kind, source)
        if self.tokenizer is not None:
            check_alignable(source)
        start = init_student(config, prepared, self.teacher, worker)
        if before is not None:
            before.keep(config.distill.student, start, prepared, worker)
        for training in trainings:
            recipe = StudentRecipe(training, worker, prepared, reader, start, self)
            run_training(training, recipe, worker, prepared)
            recipe.close()

    def data(self, prepared: Prepared) -> Prepared:
        """Return the data in the student's tokens."""
        return prepared if self.tokenizer is None else AlignedPrepared(prepared, self.tokenizer)


class StudentRecipe:
    """The model, batches and loss of a student or its baseline; see TrainingRecipe."""

    def __init__(
        self,
        training: TrainingJob,
        worker: Rank,
        prepared: Prepared,
        cached: CacheReader | ConcatReader,
        start: StudentInit,
        job: DistillJob,
    ) -> None:
        config = training.config
        self._config, self._worker, self._start = config, worker, start
        self._tables, self._outputs = job.tables, prepared.outputs
        self._folder = training.folder
        self._adapted: tuple[PreTrainedModel, Adapters] | None = None
        reader: CachedReader = cached
        weights, is_baseline = EQUAL, training.name == "baseline"
        if config.data.labels is not None:
            known = known_labels(cached)
            weights = LabelWeights(
                class_weights(config.data, prepared.training("cache"), worker.device),
                known_share=float(known.mean()),
            )
            if is_baseline and not known.all():
                # It learns from nothing else, so that its batches are full of them.
                reader = SubsetReader(cached, np.flatnonzero(known))
        self._reader: Reader = reader
        # Of the cache, which is the teacher's, and not of the student.
        self._vocabulary = int(cached.identity["vocab_size"])
        classes = None
        if isinstance(prepared, AlignedPrepared):
            self._reader = AlignedReader(reader, prepared.aligner, prepared.seq_len)
            classes = class_map(prepared.pair, worker.device)
        self._sampler = make_sampler(
            config.distill, self._reader, worker, self._vocabulary, config.seed
        )
        self._seen = SeenRows(self._sampler, len(self._reader))
        self._projections: list[torch.nn.Module] = []
        self._gives_attention = False
        self._loss: LabelsLoss | DistillationLoss = LabelsLoss(weights)
        self.stateful_loss: StatefulLoss | None = None
        if not is_baseline:
            hidden, attention = make_layer_losses(config, start.config, job.teacher)
            self._gives_attention = attention is not None
            if hidden is not None:
                self._projections = hidden.projections(config.seed)
            online = open_online_teacher(config, job.teacher, worker, prepared)
            self._loss = DistillationLoss(
                config, cached.codec, online, hidden, attention, weights, classes
            )
            self.stateful_loss = self._loss.taid

    def build(self) -> PreTrainedModel:
        """See TrainingRecipe."""
        return self._start.build()

    def wrap(self, model: PreTrainedModel) -> ModelWithHead:
        """See TrainingRecipe. With LoRA the model gets its adapters here, whole on every rank."""
        lora = self._config.distill.student.lora
        if lora is not None:
            self._adapted = model, add_adapters(model, lora, self._config.seed)
        return ModelWithHead(
            model, self._outputs, self._projections, gives_attention=self._gives_attention
        )

    def steps(self, start: int, model: torch.nn.Module) -> Iterator[Step[MicroBatch]]:
        """See TrainingRecipe."""
        steps = staged_steps(
            self._config.distill,
            self._worker,
            self._reader,
            self._sampler,
            self._tables,
            self._vocabulary,
            start,
            model,
        )
        for number, step in enumerate(steps, start):
            if self._worker.rank == 0:
                self._seen.add(number, step.indices)
            yield step

    def compute_loss(self, model: ModelWithHead, batch: MicroBatch, step: int) -> MicroBatchLoss:
        """See TrainingRecipe."""
        return self._loss(model, batch, step)

    def metrics(self, step: int, indices: np.ndarray) -> dict[str, float]:
        """See TrainingRecipe."""
        shown = self._sampler.metrics(step, indices) | self._seen.metrics()
        shown |= self._loss.metrics(step) | {"train/batch_digest": batch_digest(indices)}
        if isinstance(self._reader, AlignedReader):
            shown["cut_share"] = self._reader.cut_share
        return shown | {"cache_hit_share": _hit_share(self._reader.metrics)}

    def export(self, backend: Backend, folder: Path) -> None:
        """See TrainingRecipe."""
        if self._adapted is None:
            backend.export(folder)
            return
        model, adapters = self._adapted
        values = backend.trained_values()
        if self._worker.rank == 0:
            adapters.save(folder, model, values, self._base())

    def close(self) -> None:
        """Free what the loss holds beside the student. Of all ranks together."""
        self._loss.close()

    def _base(self) -> Base:
        """Return the model that the adapters stand on: a copy, where no other place has it."""
        student = self._config.distill.student
        if self._start.is_stored:
            assert student.load is not None
            return Base(student.load, student.revision)
        return Base(f"{self._folder.url}/{COPY}", model=self._start.build())


def _hit_share(counts: dict[str, float]) -> float:
    """Return the share of the chunks used so far that was in memory or on the local disk.

    NaN where none was used yet.
    """
    found = counts["chunk_hits"] + counts["disk_hits"]
    asked = found + counts["chunks_fetched"]
    return found / asked if asked else math.nan
