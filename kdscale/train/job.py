"""A training from start or checkpoint to a published model.

Teacher, student and baseline differ in model, batches and loss: their `TrainingRecipe`. Validation,
tracking, checkpoints, resuming and publishing are the same, and live here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.config import RunConfig
from kdscale.config.training import TrainingConfig
from kdscale.data.rows.order import spread
from kdscale.data.rows.prepared import Prepared
from kdscale.distributed.rank import GracefulStopError, Rank
from kdscale.models.attention import set_attention
from kdscale.models.attention_check import check_attention
from kdscale.models.compilation import check_compiler, compile_layers
from kdscale.models.forward import row_tensors, unwrapped
from kdscale.models.head import ModelWithHead
from kdscale.models.hf_folder import MARKER, publish, read_marker
from kdscale.models.load import count_parameters
from kdscale.models.lora import published_parameters
from kdscale.models.modes import computing_dtype
from kdscale.store import Fence, Store
from kdscale.tracking.trackers import Tracker, open_tracker
from kdscale.train.backends.base import Backend, make_backend
from kdscale.train.batches import (
    micro_batches_per_rank,
    sequence_spec,
    split_micro_batches,
)
from kdscale.train.checkpoint import delete_checkpoints, load_checkpoint, save_checkpoint
from kdscale.train.label_loss import known_cross_entropy
from kdscale.train.loop import Callbacks, MicroBatchLoss, Progress, StatefulLoss, Step, train

BatchT = TypeVar("BatchT")


class TrainingRecipe(Protocol[BatchT]):
    """The part of a training that differs between teacher, student and baseline."""

    stateful_loss: StatefulLoss | None
    """The part of the loss that follows the training, if there is one."""

    def build(self) -> PreTrainedModel:
        """Return the model before its first step, the same on every rank."""

    def wrap(self, model: PreTrainedModel) -> ModelWithHead:
        """Return `model` in the form that is trained."""

    def steps(self, start: int, model: torch.nn.Module) -> Iterable[Step[BatchT]]:
        """Yield this rank's share of each step from `start` on.

        `model` is the back end's, at `start` when the first step is asked for.
        """

    def compute_loss(self, model: ModelWithHead, batch: BatchT, step: int) -> MicroBatchLoss:
        """Return the sums over a micro-batch; called through the back end's model."""

    def metrics(self, step: int, indices: np.ndarray) -> dict[str, float]:
        """Return metrics to log of `step` and of the indices of its batch. On rank 0 only."""

    def export(self, backend: Backend, folder: Path) -> None:
        """Write what is to be published of the model of `backend` on rank 0. Collective."""


@dataclass(frozen=True)
class TrainingJob:
    """Names, places and config of a training."""

    name: str  # "teacher", "student" or "baseline": of the model's folder and the checkpoints
    fingerprint: str
    config: RunConfig
    training: TrainingConfig
    output: Store
    fence: Fence | None = None  # asked before anything is written that counts

    def check_fence(self) -> None:
        """Raise KdscaleError where another driver has taken this run over."""
        if self.fence is not None:
            self.fence.check()

    @property
    def stage(self) -> str:
        """Stage in the names of its metrics: the student's is distill."""
        return "distill" if self.name == "student" else self.name

    @property
    def checkpoints(self) -> Store:
        """Place of this training's checkpoints, until the model is published."""
        return self.output.child(f"checkpoints/{self.name}-{self.fingerprint}")

    @property
    def folder(self) -> Store:
        """Place of the finished model."""
        return self.output.child(self.name)

    def is_complete(self) -> bool:
        """Return whether the model is published already, for example before a restart."""
        found = read_marker(self.folder)
        return found is not None and found.fingerprint == self.fingerprint


def run_training(
    job: TrainingJob, recipe: TrainingRecipe[BatchT], worker: Rank, prepared: Prepared
) -> None:
    """Train and publish, from the newest checkpoint if there is one. Collective.

    Raises GracefulStopError, after a checkpoint, where the group was asked to stop.
    """
    worker.raise_if_stopping()
    training = job.training
    if training.compile:
        check_compiler(worker.device)
    count = micro_batches_per_rank(
        training.global_batch_size, training.micro_batch_size, worker.world_size
    )
    backend = make_backend(recipe.build, recipe.wrap, training, count, worker)
    _choose_attention(job, backend, worker)
    start = _resume(job, worker, backend, prepared)
    if training.compile:
        # After the checks, whose sequences have other shapes.
        compile_layers(unwrapped(backend.model).model)
    if recipe.stateful_loss is not None:
        recipe.stateful_loss.restore(start.adapted)
    tracker = _open_tracker(job, worker, start) if worker.rank == 0 else None
    end = train(
        backend=backend,
        training=training,
        worker=worker,
        start=start,
        steps=recipe.steps(start.step, backend.model),
        compute_loss=recipe.compute_loss,
        callbacks=_callbacks(job, recipe, worker, backend, prepared, tracker),
    )
    if not end.is_final(training):
        worker.say(f"{job.name}: stopped on request at step {end.step}, after a checkpoint")
        if tracker is not None:
            tracker.finish()
        raise GracefulStopError
    if end.step < training.steps:
        worker.say(f"{job.name}: stopped at step {end.step}, as validation gained no more")
    published = _restore_published(job, backend, worker, end)
    parameters = published_parameters(backend.model)
    _publish(job, partial(recipe.export, backend), worker, prepared.tokenizer_folder(), parameters)
    if tracker is not None:
        _log_published(job, tracker, {"parameters": parameters, "published_step": published})
        tracker.finish()
    worker.barrier()
    # The next model on these workers needs the room.
    backend.close()


def _choose_attention(job: TrainingJob, backend: Backend, worker: Rank) -> None:
    """Set the kernel of the model's attention, unless its loss takes the attention weights."""
    trained, config = unwrapped(backend.model), job.config
    if trained.gives_attention:
        return
    source = config.teacher if job.name == "teacher" else config.distill.student
    set_attention(trained.model, source.attention, worker.device, packs=config.packs)


def _resume(job: TrainingJob, worker: Rank, backend: Backend, prepared: Prepared) -> Progress:
    """Check the model and restore the newest checkpoint; return its step. Collective."""
    training, config = job.training, job.config
    backend.model.train()
    # Without gradients from the outside on: data parallelism would wait for a backward otherwise.
    with torch.no_grad():
        backend.model(check_attention, worker.device)
    # Ranks drop out different units; a checkpoint restores each rank's own state.
    torch.manual_seed(config.seed * 1_000_003 + worker.rank)
    start = load_checkpoint(job.checkpoints, backend, worker, training)
    spec = sequence_spec(config, prepared, training.micro_batch_size)
    with torch.no_grad():
        # In the precision of the weights, where a small fault shows, and in that of the products.
        backend.model(ModelWithHead.check_sequences, spec)
        if worker.dtype != torch.float32:
            with backend.micro_batch(last=True):
                backend.model(ModelWithHead.check_sequences, spec)
    where = f"resumed at step {start.step}" if start.step else "started"
    parameters = published_parameters(backend.model)
    adapters = count_parameters(backend.model) - parameters
    beside = f" and {adapters:,} of adapters, which alone are trained" if adapters else ""
    steps = f"{where} of {training.steps} steps"
    worker.say(f"{job.name}: {parameters:,} parameters{beside}, {steps}")
    worker.report(start.step, training.steps, tokens=start.tokens, note=job.name)
    return start


def _open_tracker(job: TrainingJob, worker: Rank, start: Progress) -> Tracker:
    config = job.config
    return open_tracker(
        config.tracking,
        run=config.name,
        stage=job.stage,
        store=job.output,
        resolved=config.model_dump(mode="json"),
        start_step=start.step,
        attempt=worker.attempt,
    )


def _callbacks(
    job: TrainingJob,
    recipe: TrainingRecipe[BatchT],
    worker: Rank,
    backend: Backend,
    prepared: Prepared,
    tracker: Tracker | None,
) -> Callbacks:
    """Return the callbacks of this rank; `tracker` is rank 0's."""
    training = job.training

    def save(progress: Progress) -> None:
        # The metrics go first: a checkpoint must never be ahead of them.
        if worker.rank == 0:
            job.check_fence()
        if tracker is not None:
            tracker.flush()
        save_checkpoint(job.checkpoints, progress, backend, worker, training)

    def progress(done: int, tokens: int) -> None:
        worker.beat(f"step {done} of {job.name}")
        if worker.rank == 0:
            worker.report(done, training.steps, tokens=tokens, note=job.name)

    callbacks = Callbacks(
        validate=_validator(backend, worker, prepared, training),
        save=save,
        progress=progress,
        stateful_loss=recipe.stateful_loss,
        stop_requested=worker.stop_requested,
    )
    if tracker is not None:
        callbacks.log = tracker.log
        callbacks.metrics = recipe.metrics
    return callbacks


def _validator(
    backend: Backend, worker: Rank, prepared: Prepared, training: TrainingConfig
) -> Callable[[], dict[str, float]]:
    """Return a function that measures {"loss": nats a token} on evenly spread validation data.

    The loss is the same on every rank, as all decide by it. Collective.
    """
    table = prepared.split("validation")
    chosen = spread(training.validation_sequences, len(table))
    rows = table.take(chosen)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        backend.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=worker.device)
        order = spread(len(rows), len(rows))
        size = training.micro_batch_size
        for part, valid in split_micro_batches(order, size, worker.rank, worker.world_size):
            batch = row_tensors(rows.take(part), worker.device, valid)
            with computing_dtype(backend.model, worker):
                sums[0] += backend.model(known_cross_entropy, batch)
            sums[1] += batch.known.sum()
            worker.beat("a batch of validation")
        total, targets = worker.all_reduce_sum(sums).tolist()
        found: dict[str, float] = worker.broadcast({"loss": total / max(1.0, targets)})
        return found

    return validate


def _restore_published(job: TrainingJob, backend: Backend, worker: Rank, end: Progress) -> int:
    """Restore the best step where that is the one to publish; return its number. Collective.

    Where no validation gave a loss there is no best one, and the last is published.
    """
    best = end.validated.best_step
    if job.training.keep == "last" or best in (0, end.step):
        return end.step
    load_checkpoint(job.checkpoints, backend, worker, job.training, best)
    worker.say(
        f"{job.name}: step {best} is published, with a validation loss of "
        f"{end.validated.best_loss:.4f}"
    )
    return best


def _publish(
    job: TrainingJob,
    export: Callable[[Path], None],
    worker: Rank,
    tokenizer: Path,
    parameters: int,
) -> None:
    """Publish the model. Collective, because a sharded model is gathered by all ranks."""
    if worker.rank == 0:
        job.check_fence()
        publish(
            job.output,
            job.name,
            export=export,
            tokenizer=tokenizer,
            fingerprint=job.fingerprint,
            parameters=parameters,
        )
        delete_checkpoints(job.checkpoints)
    else:
        export(Path())
    worker.barrier()


def _log_published(job: TrainingJob, tracker: Tracker, facts: dict[str, int]) -> None:
    """Log the published model; a student as an artifact, with its files if they are local."""
    tracker.summary({**facts})
    if job.name != "student":
        return
    name, folder = f"{job.config.name}-student", job.folder.local_path()
    if folder is not None:
        tracker.log_folder(name, "model", folder, facts)
    else:
        tracker.log_reference(name, "model", f"{job.folder.url}/{MARKER}", facts)
