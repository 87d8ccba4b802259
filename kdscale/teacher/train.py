"""Train the teacher on labels: Ray Train workers, ZeRO, shuffled epochs over the training rows."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from kdscale.data.order import uniform_batch
from kdscale.data.prepared import open_prepared
from kdscale.losses.fused import head_and_loss
from kdscale.models.build import build_model, make_config
from kdscale.models.forward import next_token_labels, row_tensors
from kdscale.models.head import TrainedModel
from kdscale.train.batches import batch_digest, rank_rows, split_micro_batches
from kdscale.train.loop import LossSums, Step
from kdscale.train.session import Session, run_session
from kdscale.workers import current_worker

# ids [m, T], segments [m, T], loss mask [m, T]
MicroBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def train_teacher(job: dict[str, Any]) -> None:
    """A worker's loop. `job` has `session` (Session) and `prepared` (Store)."""
    session: Session = job["session"]
    if session.is_complete():
        return
    worker = current_worker()
    prepared = open_prepared(job["prepared"])
    table = prepared.split("train")
    training, config = session.training, session.config
    assert config.teacher.model is not None
    model_config = make_config(
        config.teacher.model, prepared.vocab_size, prepared.special_ids, config.data.row_length
    )

    def micro_batch(part: np.ndarray, valid: np.ndarray) -> MicroBatch:
        ids, segments, mask = row_tensors(table.take(part), worker.device)
        return ids, segments, mask & torch.from_numpy(valid).to(worker.device)[:, None]

    def batch_of(step: int) -> np.ndarray:
        position = step * training.batch_rows
        return uniform_batch(position, training.batch_rows, len(table), config.seed)

    def steps(start: int, _: torch.nn.Module) -> Iterator[Step[MicroBatch]]:
        for step in range(start, training.steps):
            batch = batch_of(step)
            mine = rank_rows(batch, worker.rank, worker.world_size)
            size = training.micro_batch_rows
            parts = split_micro_batches(mine, batch, size, worker.world_size)
            micro_batches = [micro_batch(part, valid) for part, valid in parts]
            yield Step(micro_batches, sum(int(mask.sum()) for _, _, mask in micro_batches))

    def compute_loss(model: TrainedModel, batch: MicroBatch, step: int) -> LossSums:
        ids, segments, mask = batch
        labels = next_token_labels(ids)[mask]
        loss = head_and_loss(model.hidden(ids, segments)[mask], model.head, labels).objective
        return loss, {"loss": loss.detach()}

    run_session(
        session,
        worker,
        prepared,
        build=lambda: build_model(model_config, config.seed),
        wrap=partial(TrainedModel, vocab_size=prepared.vocab_size),
        steps=steps,
        compute_loss=compute_loss,
        extra=lambda step: {"train/batch_digest": batch_digest(batch_of(step))},
    )
