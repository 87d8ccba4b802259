"""One training from start or checkpoint to a published model: what the loop is surrounded by.

The teacher and the student differ in their model, their batches and their loss; validation,
tracking, checkpoints, resuming and publishing are the same and live here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.config import RunConfig
from kdscale.config.training import TrainingConfig
from kdscale.data.rows.order import spread
from kdscale.data.rows.prepared import Prepared
from kdscale.distributed.rank import GracefulStopError, Rank
from kdscale.losses.fused import head_and_loss
from kdscale.models.attention import check_attention
from kdscale.models.forward import RowTensors, row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.models.hf_folder import MARKER, publish, read_marker
from kdscale.models.load import count_parameters
from kdscale.store import Fence, Store
from kdscale.tracking.trackers import Tracker, open_tracker
from kdscale.train.backends.base import Backend, make_backend
from kdscale.train.batches import (
    micro_batches_per_rank,
    rank_rows,
    sequence_spec,
    split_micro_batches,
)
from kdscale.train.checkpoint import delete_checkpoints, load_checkpoint, save_checkpoint
from kdscale.train.loop import Callbacks, ComputeLoss, Progress, StatefulLoss, Step, train

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class TrainingJob:
    """What a training is about: names, places and the config of its run."""

    name: str  # "teacher", "student" or "baseline": of the model's folder and the checkpoints
    fingerprint: str
    config: RunConfig
    training: TrainingConfig
    output: Store
    fence: Fence | None = None  # asked before anything is written that counts

    def check_fence(self) -> None:
        """KdscaleError where another driver has taken this run over."""
        if self.fence is not None:
            self.fence.check()

    @property
    def stage(self) -> str:
        """What its metrics are called: the student is what the distill stage is about."""
        return "distill" if self.name == "student" else self.name

    @property
    def checkpoints(self) -> Store:
        """Where this training's checkpoints are, until the model is published."""
        return self.output.child(f"checkpoints/{self.name}-{self.fingerprint}")

    @property
    def folder(self) -> Store:
        """Where the finished model goes."""
        return self.output.child(self.name)

    def is_complete(self) -> bool:
        """Whether the model is published already, for example before a restart."""
        found = read_marker(self.folder)
        return found is not None and found.fingerprint == self.fingerprint


def run_session(
    session: TrainingJob,
    worker: Rank,
    prepared: Prepared,
    *,
    build: Callable[[], PreTrainedModel],
    wrap: Callable[[PreTrainedModel], ModelWithHead],
    steps: Callable[[int, torch.nn.Module], Iterable[Step[BatchT]]],
    compute_loss: ComputeLoss[BatchT],
    extra: Callable[[int, np.ndarray], dict[str, float]],
    adaptive: StatefulLoss | None = None,
) -> None:
    """Train and publish. Collective; restarts go on from the newest checkpoint. LeavingError, after
    a checkpoint, where the group was asked to leave.

    `wrap` puts the built model into the form that is trained. `steps(start, model)` yields this
    rank's share of the steps from `start` on, where `model`, the back end's, is at `start` when the
    first is asked for; `extra(step, indices)` gives metrics to log with it on rank 0; `adaptive` is
    a part of the loss that follows the training.
    """
    worker.raise_if_stopping()
    training = session.training
    count = micro_batches_per_rank(
        training.global_batch_size, training.micro_batch_size, worker.world_size
    )
    backend = make_backend(build, wrap, training, count, worker)
    start = _resume(session, worker, backend, prepared)
    if adaptive is not None:
        adaptive.restore(start.adapted)
    tracker = _open_tracker(session, worker, start) if worker.rank == 0 else None
    end = train(
        backend=backend,
        training=training,
        worker=worker,
        start=start,
        steps=steps(start.step, backend.model),
        compute_loss=compute_loss,
        hooks=_hooks(session, worker, backend, prepared, tracker, extra, adaptive),
    )
    if not end.is_final(training):
        worker.say(f"{session.name}: left at step {end.step}, where its checkpoint is")
        if tracker is not None:
            tracker.finish()
        raise GracefulStopError
    if end.step < training.steps:
        worker.say(f"{session.name}: stopped at step {end.step}, as validation gained no more")
    published = _restore_published(session, backend, worker, end)
    parameters = count_parameters(backend.model)
    _publish(session, backend, worker, prepared.tokenizer_folder(), parameters)
    if tracker is not None:
        facts = {"parameters": parameters, "published_step": published}
        tracker.summary({**facts})
        if session.name == "student":
            _log_student(session, tracker, facts)
        tracker.finish()
    worker.barrier()


def _resume(session: TrainingJob, worker: Rank, backend: Backend, prepared: Prepared) -> Progress:
    """Where the newest checkpoint stands, with its state in the checked model. Collective."""
    training, config = session.training, session.config
    backend.model.train()
    # Without gradients from the outside on: data parallelism would wait for a backward otherwise.
    with torch.no_grad():
        backend.model(check_attention, worker.device)
    # Ranks drop out different units; a checkpoint restores each rank's own state.
    torch.manual_seed(config.seed * 1_000_003 + worker.rank)
    start = load_checkpoint(session.checkpoints, backend, worker, training)
    kind = sequence_spec(config, prepared, training.micro_batch_size)
    with torch.no_grad():
        # In the precision of the weights, where a small fault shows, and in that of the products.
        backend.model(ModelWithHead.check_sequences, kind)
        if worker.dtype != torch.float32:
            with backend.micro_batch(last=True):
                backend.model(ModelWithHead.check_sequences, kind)
    where = f"resumed at step {start.step}" if start.step else "started"
    parameters = count_parameters(backend.model)
    worker.say(f"{session.name}: {parameters:,} parameters, {where} of {training.steps} steps")
    worker.report(start.step, training.steps, tokens=start.tokens, note=session.name)
    return start


def _open_tracker(session: TrainingJob, worker: Rank, start: Progress) -> Tracker:
    config = session.config
    return open_tracker(
        config.tracking,
        run=config.name,
        stage=session.stage,
        store=session.output,
        resolved=config.model_dump(mode="json"),
        start_step=start.step,
        attempt=worker.attempt,
    )


def _hooks(
    session: TrainingJob,
    worker: Rank,
    backend: Backend,
    prepared: Prepared,
    tracker: Tracker | None,
    extra: Callable[[int, np.ndarray], dict[str, float]],
    adaptive: StatefulLoss | None,
) -> Callbacks:
    """What the loop calls; `tracker` is rank 0's."""
    training = session.training

    def save(progress: Progress) -> None:
        # The metrics go first: a checkpoint must never be ahead of them.
        if worker.rank == 0:
            session.check_fence()
        if tracker is not None:
            tracker.flush()
        save_checkpoint(session.checkpoints, progress, backend, worker, training)

    def progress(done: int, tokens: int) -> None:
        worker.beat(f"step {done} of {session.name}")
        if worker.rank == 0:
            worker.report(done, training.steps, tokens=tokens, note=session.name)

    return Callbacks(
        log=tracker.log if tracker is not None else lambda step, tokens, metrics: None,
        validate=_validator(backend, worker, prepared, training),
        save=save,
        progress=progress,
        extra=extra if worker.rank == 0 else lambda step, indices: {},
        adaptive=adaptive,
        stop_requested=worker.stop_requested,
    )


def _log_student(session: TrainingJob, tracker: Tracker, metadata: dict[str, int]) -> None:
    """The student as an artifact: its files where they are local, else where they are."""
    name, folder = f"{session.config.name}-student", session.folder.local_path()
    if folder is not None:
        tracker.log_folder(name, "model", folder, metadata)
    else:
        tracker.log_reference(name, "model", f"{session.folder.url}/{MARKER}", metadata)


def _restore_published(session: TrainingJob, backend: Backend, worker: Rank, end: Progress) -> int:
    """Go back to the best step where that is the one to publish; the step that it is. Collective.

    Where no validation gave a loss there is no best one, and the last is published.
    """
    best = end.validated.best_step
    if session.training.keep == "last" or best in (0, end.step):
        return end.step
    load_checkpoint(session.checkpoints, backend, worker, session.training, best)
    worker.say(
        f"{session.name}: step {best} is published, with a validation loss of "
        f"{end.validated.best_loss:.4f}"
    )
    return best


def _publish(
    session: TrainingJob, backend: Backend, worker: Rank, tokenizer: Path, parameters: int
) -> None:
    """Collective, because a sharded model is gathered by all ranks."""
    if worker.rank == 0:
        session.check_fence()
        publish(
            session.output,
            session.name,
            export=backend.export,
            tokenizer=tokenizer,
            fingerprint=session.fingerprint,
            parameters=parameters,
        )
        delete_checkpoints(session.checkpoints)
    else:
        backend.export(Path())
    worker.barrier()


def _validator(
    backend: Backend, worker: Rank, prepared: Prepared, training: TrainingConfig
) -> Callable[[], dict[str, float]]:
    """A pass over evenly spread validation rows: {"loss": nats a token}, the same on every rank, as
    they all decide by it. Collective."""
    table = prepared.split("validation")
    chosen = spread(training.validation_sequences, len(table))
    rows = table.take(chosen)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        backend.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=worker.device)
        order = spread(len(rows), len(rows))
        mine = rank_rows(order, worker.rank, worker.world_size)
        size = training.micro_batch_size
        for part, valid in split_micro_batches(mine, order, size, worker.world_size):
            batch = row_tensors(rows.take(part), worker.device, valid)
            sums[0] += backend.model(_cross_entropy, batch)
            sums[1] += batch.known.sum()
            worker.beat("a batch of validation")
        total, targets = worker.all_reduce_sum(sums).tolist()
        found: dict[str, float] = worker.broadcast({"loss": total / max(1.0, targets)})
        return found

    return validate


def _cross_entropy(model: ModelWithHead, batch: RowTensors) -> torch.Tensor:
    known = batch.known
    hidden = model.hidden(batch.ids, batch.segments)[known]
    return head_and_loss(hidden, model.head, batch.labels[known]).cross_entropy
