"""Train the teacher on labels: Ray Train workers, ZeRO, shuffled epochs over the training rows.

From random weights, or further from a model that exists; what that one lacks for the task, such as
a classifier's head, starts at random.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.config import RunConfig
from kdscale.data.rows.order import uniform_batch
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.distributed.rank import current_rank
from kdscale.losses.fused import head_and_loss
from kdscale.models.forward import RowTensors, row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.models.load import build_model, load_model
from kdscale.store import Store
from kdscale.teacher.pretrained import teacher_config, teacher_source
from kdscale.train.batches import batch_digest, rank_rows, split_micro_batches
from kdscale.train.job import TrainingJob, run_session
from kdscale.train.label_weights import LabelWeights, class_weights
from kdscale.train.loop import LossSums, Step


@dataclass(frozen=True)
class TeacherJob:
    """Training of a teacher, as each worker does it."""

    session: TrainingJob
    prepared: Store

    def run(self) -> None:
        """Train on this rank."""
        train_teacher(self)


def train_teacher(job: TeacherJob) -> None:
    """Train the teacher of `job` on this rank, with all others."""
    session = job.session
    if session.is_complete():
        return
    worker = current_rank()
    prepared = open_prepared(job.prepared)
    table = prepared.training("teacher")
    labelled = table.labelled()
    training, config = session.training, session.config
    weights = LabelWeights(class_weights(config.data, table, worker.device))

    def micro_batch(part: np.ndarray, valid: np.ndarray) -> RowTensors:
        return row_tensors(table.take(part), worker.device, valid)

    def batch_of(step: int) -> np.ndarray:
        position = step * training.global_batch_size
        at = uniform_batch(position, training.global_batch_size, len(labelled), config.seed)
        return labelled[at]

    def steps(start: int, _: torch.nn.Module) -> Iterator[Step[RowTensors]]:
        for step in range(start, training.steps):
            batch = batch_of(step)
            mine = rank_rows(batch, worker.rank, worker.world_size)
            size = training.micro_batch_size
            parts = split_micro_batches(mine, batch, size, worker.world_size)
            micro_batches = [micro_batch(part, valid) for part, valid in parts]
            yield Step(micro_batches, sum(int(one.mask.sum()) for one in micro_batches), batch)

    def compute_loss(model: ModelWithHead, batch: RowTensors, step: int) -> LossSums:
        labels = batch.labels[batch.mask]
        hidden = model.hidden(batch.ids, batch.segments)[batch.mask]
        found = head_and_loss(hidden, model.head, labels, label_weights=weights.at(labels))
        loss = found.objective
        return loss, {"loss": loss.detach()}

    run_session(
        session,
        worker,
        prepared,
        build=partial(_build, config, prepared),
        wrap=partial(ModelWithHead, vocab_size=prepared.outputs),
        steps=steps,
        compute_loss=compute_loss,
        extra=lambda step, indices: {"train/batch_digest": batch_digest(indices)},
    )


def _build(config: RunConfig, prepared: Prepared) -> PreTrainedModel:
    """The teacher before its first step, the same on every rank."""
    shape = teacher_config(config, prepared)
    if config.teacher.load is None:
        return build_model(shape, config.seed)
    torch.manual_seed(config.seed)
    return load_model(teacher_source(config), revision=config.teacher.revision, config=shape)
