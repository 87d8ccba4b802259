"""Training of the teacher on labels: shuffled epochs over the training sequences.

From random weights, or further from an existing model; what that one lacks for the task, such as a
classifier's head, starts at random.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.config import RunConfig
from kdscale.data.rows.order import uniform_batch
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.distributed.rank import Rank, current_rank
from kdscale.models.forward import RowTensors, row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, load_model
from kdscale.store import Store
from kdscale.teacher.pretrained import teacher_config, teacher_source
from kdscale.train.backends.base import Backend
from kdscale.train.batches import batch_digest, split_micro_batches
from kdscale.train.job import TrainingJob, run_training
from kdscale.train.label_loss import LabelWeights, class_weights, label_loss
from kdscale.train.loop import MicroBatchLoss, StatefulLoss, Step
from kdscale.types import DataFacts


@dataclass(frozen=True)
class TeacherJob:
    """Training of a teacher, as each worker does it."""

    training: TrainingJob
    prepared: Store

    def run(self) -> None:
        """Train on this rank, with all others."""
        if self.training.is_complete():
            return
        worker, prepared = current_rank(), open_prepared(self.prepared)
        run_training(
            self.training, TeacherRecipe(self.training, worker, prepared), worker, prepared
        )


class TeacherRecipe:
    """A teacher's model, batches and loss; see TrainingRecipe."""

    stateful_loss: StatefulLoss | None = None

    def __init__(self, job: TrainingJob, worker: Rank, prepared: Prepared) -> None:
        self._config, self._training = job.config, job.training
        self._worker, self._prepared = worker, prepared
        self._table = prepared.training("teacher")
        self._labelled = self._table.labelled()
        self._weights = LabelWeights(class_weights(job.config.data, self._table, worker.device))

    def build(self) -> PreTrainedModel:
        """See TrainingRecipe."""
        return build_teacher(self._config, self._prepared)

    def wrap(self, model: PreTrainedModel) -> ModelWithHead:
        """See TrainingRecipe."""
        return ModelWithHead(model, vocab_size=self._prepared.outputs)

    def steps(self, start: int, model: torch.nn.Module) -> Iterator[Step[RowTensors]]:
        """See TrainingRecipe."""
        training, worker = self._training, self._worker
        for step in range(start, training.steps):
            batch = self._batch(step)
            parts = split_micro_batches(
                batch, training.micro_batch_size, worker.rank, worker.world_size
            )
            micro_batches = [
                row_tensors(self._table.take(part), worker.device, valid) for part, valid in parts
            ]
            yield Step(micro_batches, sum(one.targets for one in micro_batches), batch)

    def compute_loss(self, model: ModelWithHead, batch: RowTensors, step: int) -> MicroBatchLoss:
        """See TrainingRecipe."""
        loss = label_loss(model, batch, self._weights).objective
        return loss, {"loss": loss.detach()}

    def metrics(self, step: int, indices: np.ndarray) -> dict[str, float]:
        """See TrainingRecipe."""
        return {"train/batch_digest": batch_digest(indices)}

    def export(self, backend: Backend, folder: Path) -> None:
        """See TrainingRecipe."""
        backend.export(folder)

    def _batch(self, step: int) -> np.ndarray:
        """Return the indices of the global batch of `step`, [B] int64."""
        size = self._training.global_batch_size
        at = uniform_batch(step * size, size, len(self._labelled), self._config.seed)
        return self._labelled[at]


def build_teacher(config: RunConfig, data: DataFacts) -> PreTrainedModel:
    """Return the teacher before its first step, the same on every rank."""
    shape = teacher_config(config, data)
    if config.teacher.load is None:
        return build_model(shape, config.seed)
    torch.manual_seed(config.seed)
    return load_model(teacher_source(config), revision=config.teacher.revision, config=shape)
