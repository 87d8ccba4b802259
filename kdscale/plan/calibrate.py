"""Calibration of a plan: a worker group like the run's measures forward, encoder, steps and store.

Models have random weights and the run's own shapes, micro-batches, ZeRO stages and codec. A teacher
that exists is used; one that would take too long is cut to its first layers. All ranks compute at
once, so that their contention is in the rates. It takes about a minute, and the result is kept
beside the output and for the user's other plans.
"""

import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.cache.codecs import make_codec, uniforms
from kdscale.cache.fidelity.stored_size import StoredSize
from kdscale.cache.format.prior import count_prior
from kdscale.config import RunConfig
from kdscale.config.lora import LoraConfig
from kdscale.config.training import TrainingConfig
from kdscale.data.rows.order import spread
from kdscale.data.rows.prepared import open_prepared
from kdscale.distill.batches import MicroBatch
from kdscale.distill.objective import DistillationLoss, LabelsLoss
from kdscale.distributed.rank import Rank, current_rank
from kdscale.errors import KdscaleError
from kdscale.losses.fused import head_and_loss
from kdscale.models.forward import RowTensors, row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.models.hf_folder import ModelReference, read_marker
from kdscale.models.init.layers import keep_layers
from kdscale.models.load import build_model, load_model
from kdscale.models.lora import add_adapters
from kdscale.models.release import release
from kdscale.models.sharded import teacher_group
from kdscale.plan.calibration import Calibration, keep
from kdscale.plan.inputs import PlanInputs, rank_rows, shape_of
from kdscale.plan.timing import rate
from kdscale.run.artifacts import RunArtifacts
from kdscale.store import Store, open_store
from kdscale.teacher.states import encode_states, place_captured, states_of, whole_head
from kdscale.train.backends.base import make_backend
from kdscale.train.batches import micro_batches_per_rank
from kdscale.train.loop import Callbacks, MicroBatchLoss, Progress, Step, train
from kdscale.train.throughput import DeviceTimer, peak_memory
from kdscale.workers.group import run_workers
from kdscale.workers.progress import stage_progress
from kdscale.workers.ray_session import ray_session

RESULT = "calibration-measured.json"
_PROBE = "calibration-probe"
_OBJECT_BYTES = 8 << 20
_WARM_UPS = 3
_STORED_POSITIONS, _PRIOR_ROWS = 16_384, 8192
_BUDGET_SECONDS = 5.0  # of each measurement
_FEWEST_LAYERS = 2


@dataclass(frozen=True)
class MeasureJob:
    """Job of the workers; `teacher` and `student` are transformers configs."""

    config: RunConfig
    output: Store
    teacher: Any
    student: Any
    vocab_size: int
    existing: tuple[ModelReference, Store] | None
    """The complete teacher and the prepared data; else the teacher has random weights."""

    @property
    def outputs(self) -> int:
        """Logits of a position: those of the vocabulary, as the task is a causal one."""
        return self.vocab_size

    def run(self) -> None:
        """Measure on this rank, with all others; rank 0 writes `RESULT`.

        It holds seconds of a forward, of an encoded forward, of a step of the student (and of a
        teacher that is trained here), of the store, and of all.
        """
        rank = current_rank()
        started = time.perf_counter()
        found: dict[str, Any] = {"base_bytes": peak_memory(torch.device("cpu"))}
        rank.say(f"a process takes {found['base_bytes'] / 2**30:.2f} GiB before it has a model")
        found |= _teacher_rates(self, rank)
        found["step"] = _student_step(self, rank)
        training = self.config.teacher.training
        if training is not None:
            found["teacher_step"] = _teacher_step(self, training, rank)
        if rank.rank == 0:
            found |= _store_rates(self.output)
            device = rank.device
            found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
            found["loop"] = time.perf_counter() - started
            self.output.put(RESULT, json.dumps(found).encode())
        rank.barrier()


def calibrate(inputs: PlanInputs, say: Callable[[str], None] = print) -> Calibration:
    """Measure on the cluster that Ray connects to, and keep the result in the output.

    Raises KdscaleError where the plan is for GPUs and the config's workers have none, or the other
    way round, where the output cannot be written, or where the cluster is too small.
    """
    config = inputs.config
    workers = config.cache.capture.workers
    if inputs.is_gpu != (workers.gpus > 0):
        have = f"{workers.gpus:g} GPUs a worker (cache.capture.workers.gpus)"
        raise KdscaleError(
            f"A calibration measures what the config's workers run on, {have}, and not "
            f"{inputs.hardware.name}.",
            "Calibrate on the hardware that is planned for, or plan without --calibrate.",
        )
    if config.task != "causal-lm":
        raise KdscaleError(
            f"A calibration measures causal language models, and the run's task is {config.task}.",
            "Plan without --calibrate.",
        )
    output = open_store(config.output)
    output.check()
    teacher = _affordable_teacher(inputs)
    is_whole = teacher is inputs.teacher_config
    job = MeasureJob(
        config=config,
        output=output,
        teacher=teacher,
        student=inputs.student_config,
        vocab_size=inputs.tokens.vocab_size,
        existing=_existing(inputs) if is_whole else None,
    )
    say(f"calibrating with {workers.count} workers, about a minute")
    with ray_session(), stage_progress("calibrate") as progress:
        begun = time.perf_counter()
        run_workers(job, workers, progress)
        whole = time.perf_counter() - begun
    found = json.loads(output.get(RESULT))
    output.delete(RESULT)
    result = _rates(found, whole, teacher, inputs)
    keep(result, output)
    return result


def _affordable_teacher(inputs: PlanInputs) -> Any:
    """Return the teacher's config, cut to the layers that a forward can have within the budget.

    By the hardware's assumed speed; the config itself where all of them can.
    """
    capture, length = inputs.config.cache.capture, inputs.tokens.seq_len
    speed = rate(inputs.with_measured(None), capture.workers, training=False)
    seconds = capture.micro_batch_size * length * inputs.teacher.forward_flops(length) / speed
    layers = inputs.teacher.layers
    kept = max(_FEWEST_LAYERS, min(layers, int(layers * _BUDGET_SECONDS / seconds)))
    if kept >= layers:
        return inputs.teacher_config
    config = copy.deepcopy(inputs.teacher_config)
    keep_layers(config.get_text_config(), list(range(kept)))
    return config


def _existing(inputs: PlanInputs) -> tuple[ModelReference, Store] | None:
    """Return the run's own teacher and prepared data, where both stages are complete."""
    if not inputs.tokens.prepared:
        return None
    run = RunArtifacts(inputs.config)
    teacher = read_marker(run.output.child("teacher"))
    if teacher is None or teacher.fingerprint != run.teacher_fingerprint:
        return None
    return teacher, run.prepared_store


def _rates(found: dict[str, Any], whole: float, teacher: Any, inputs: PlanInputs) -> Calibration:
    """Turn seconds of the measured work into rates of a rank."""
    config, length = inputs.config, inputs.tokens.seq_len
    capture, training = config.cache.capture, config.distill.training
    measured = shape_of(teacher)
    positions = capture.micro_batch_size * length

    def step_flops(shape: Any, training: Any) -> float:
        rows = rank_rows(training, capture.workers.count)
        each = shape.training_flops(length, training.activation_checkpointing)
        return float(rows * length * each)

    teacher_flops = None
    if "teacher_step" in found:
        teacher_flops = step_flops(measured, config.teacher.training) / found["teacher_step"]
    return Calibration(
        hardware=inputs.hardware.name,
        device=found["device"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        workers=capture.workers.count,
        forward_flops=positions * measured.forward_flops(length) / found["forward"],
        training_flops=step_flops(inputs.student, training) / found["step"],
        teacher_flops=teacher_flops,
        encode_tokens=positions / found["encode"],
        put_bytes=found["put_bytes"],
        get_bytes=found["get_bytes"],
        latency_seconds=found["latency_seconds"],
        start_up_seconds=whole - found["loop"],
        base_bytes=found["base_bytes"],
        codec=config.cache.codec if "stored_payload" in found else None,
        stored_payload=found.get("stored_payload"),
    )


def _teacher_rates(job: MeasureJob, rank: Rank) -> dict[str, float]:
    """Return median seconds of a micro-batch's forward and encoding, and its stored bytes."""
    capture = job.config.cache.capture
    group = None
    if capture.zero.stage == 3:
        group = teacher_group(capture.teacher_group, capture.workers, rank, lambda: job.teacher)
    model = place_captured(partial(_teacher, job, rank), rank, capture.zero, job, group)
    head = whole_head(model)
    codec = make_codec(job.config.cache.codec, job.vocab_size)
    ids, segments = _random_rows(job, capture.micro_batch_size, rank.device)
    samples = torch.randint(256, (len(ids), 16), dtype=torch.uint8, device=rank.device)
    batch = RowTensors(ids, segments, torch.ones_like(ids, dtype=torch.bool), ids)

    def run() -> tuple[float, float]:
        """Return seconds of a forward, the head's products included, and of encoding."""
        timer = DeviceTimer(rank.device)
        begun = time.perf_counter()
        states = states_of(model, batch)
        _synchronize(rank)
        forward = time.perf_counter() - begun
        begun = time.perf_counter()
        noise = uniforms(0, samples, ids.shape[1], codec.streams).flatten(0, 1)
        encode_states(codec, head, states, ids.flatten(), noise, 1.0, timer).encoded.payload.cpu()
        _synchronize(rank)
        return forward + timer.seconds, time.perf_counter() - begun - timer.seconds

    for _ in range(_WARM_UPS):
        seconds = sum(run())
    rank.say("the teacher runs")
    forwards, encodes = zip(*(run() for _ in range(_repeats(seconds, rank))), strict=True)
    found = {"forward": median(forwards), "encode": median(encodes)}
    if job.existing is not None and job.config.cache.pack:
        found["stored_payload"] = _stored_payload(job, job.existing[1], rank, model)
    release(model)
    return found


def _teacher(job: MeasureJob, rank: Rank) -> PreTrainedModel:
    """Return the run's own teacher, or one of its shape."""
    if job.existing is None:
        return build_model(job.teacher, seed=0).to(rank.dtype)
    own = job.existing[0]
    return load_model(own.local(), rank.dtype, own.revision)


@torch.no_grad()
def _stored_payload(job: MeasureJob, prepared: Store, rank: Rank, model: torch.nn.Module) -> float:
    """Return the stored bytes of a position's payload, from sequences spread over the text.

    All ranks run the same sequences, as a sharded teacher needs them to.
    """
    cache, size = job.config.cache, job.config.cache.capture.micro_batch_size
    length = job.config.data.seq_len
    table = open_prepared(prepared).split("train")
    texts = table.take(spread(_PRIOR_ROWS, len(table)))
    codec, head = make_codec(cache.codec, job.vocab_size), whole_head(model)
    prior = count_prior([(texts.input_ids, texts.loss_mask)], job.vocab_size)
    stored = StoredSize(codec, prior, chunk=cache.sequences_per_chunk * length)
    chosen = spread(max(size, _STORED_POSITIONS // length), len(table))
    for first in range(0, len(chosen), size):
        rows = table.take(chosen[first : first + size])
        batch = row_tensors(rows, rank.device)
        states, labels = states_of(model, batch), batch.labels[batch.mask]
        noise = torch.rand(len(states), codec.streams, dtype=torch.float64, device=rank.device)
        timer = DeviceTimer(rank.device)
        found = encode_states(codec, head, states, labels, noise, cache.temperature, timer)
        stored.add(rows.input_ids[rows.loss_mask], found.encoded.payload.cpu().numpy())
    return stored.bytes_per_position()


def _student_step(job: MeasureJob, rank: Rank) -> float:
    """Return median seconds of the student's step on targets of the run's codec.

    Of a student with its own tokenizer on labels: its targets cost what they cost.
    """
    aligns = job.config.aligns
    if aligns:
        job = replace(job, vocab_size=job.student.get_text_config().vocab_size)
    training, length = job.config.distill.training, job.config.data.seq_len
    codec = make_codec(job.config.cache.codec, job.vocab_size)
    cached = job.config.distill.targets == "cache" and not aligns
    loss = DistillationLoss(job.config, codec, None) if cached else LabelsLoss()
    rows = min(training.micro_batch_size, rank_rows(training, rank.world_size))
    logits = torch.randn(length, job.vocab_size)
    noise = torch.rand(length, codec.streams, dtype=torch.float64)
    payload = codec.encode(logits, noise).payload.expand(rows, length, -1).to(rank.device)
    ids, segments = _random_rows(job, rows, rank.device)
    mask = _next_token_mask(ids)
    entropy = torch.zeros(rows, device=rank.device)
    tensors = RowTensors(ids, segments, mask, torch.roll(ids, -1, dims=1))
    batch = MicroBatch(tensors, payload, entropy)
    lora = job.config.distill.student.lora
    return _step_seconds(job, job.student, training, batch, loss, int(mask.sum()), rank, lora)


def _teacher_step(job: MeasureJob, training: TrainingConfig, rank: Rank) -> float:
    """Return median seconds of the teacher's step, on labels."""
    rows = min(training.micro_batch_size, rank_rows(training, rank.world_size))
    ids, segments = _random_rows(job, rows, rank.device)
    mask = _next_token_mask(ids)

    def loss(model: ModelWithHead, batch: Any, step: int) -> MicroBatchLoss:
        labels = torch.roll(ids, -1, dims=1)[mask]
        found = head_and_loss(model.hidden(ids, segments)[mask], model.head, labels).objective
        return found, {"loss": found.detach()}

    return _step_seconds(job, job.teacher, training, ids, loss, int(mask.sum()), rank)


def _step_seconds(
    job: MeasureJob,
    shape: Any,
    training: TrainingConfig,
    batch: Any,
    loss: Any,
    targets: int,
    rank: Rank,
    lora: LoraConfig | None = None,
) -> float:
    """Return median seconds of a step of the real loop: forward, backward, reduction, update."""
    count = micro_batches_per_rank(
        training.global_batch_size, training.micro_batch_size, rank.world_size
    )

    def wrap(model: PreTrainedModel) -> ModelWithHead:
        if lora is not None:
            add_adapters(model, lora, seed=0)
        return ModelWithHead(model, job.vocab_size)

    backend = make_backend(partial(build_model, shape, 0), wrap, training, count, rank)
    step = Step([batch] * count, count * targets, np.arange(training.global_batch_size))

    def run(steps: int) -> list[float]:
        stamps: list[float] = []

        def timed() -> Iterator[Step[Any]]:
            for _ in range(steps):
                _synchronize(rank)
                stamps.append(time.perf_counter())
                yield step

        rarely = {"log_every": 1000, "validate_every": 1000}
        train(
            backend=backend,
            training=training.model_copy(update={"steps": steps, **rarely}),
            worker=rank,
            start=Progress(),
            steps=timed(),
            compute_loss=loss,
            callbacks=Callbacks(validate=lambda: {"loss": 0.0}),
        )
        stamps.append(time.perf_counter())
        return [after - before for before, after in pairwise(stamps)]

    first = run(2)[-1]
    rank.say(f"a step of {shape.model_type} takes {first:.3g} s")
    found = median(run(_repeats(first, rank)))
    backend.close()
    return found


def _random_rows(
    job: MeasureJob, count: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random ids and segments [count, T].

    Two documents a sequence where sequences are packed, as attention then uses its mask.
    """
    length = job.config.data.seq_len
    ids = torch.randint(job.vocab_size, (count, length), device=device)
    segments = torch.ones_like(ids)
    if job.config.data.pack:
        segments[:, length // 2 :] = 2
    return ids, segments


def _next_token_mask(ids: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, -1] = False
    return mask


def _repeats(seconds: float, rank: Rank) -> int:
    """Return how often work of `seconds` fits the budget; the same on every rank."""
    found: int = rank.broadcast(min(200, max(3, int(_BUDGET_SECONDS / max(seconds, 1e-6)))))
    return found


def _synchronize(rank: Rank) -> None:
    """Wait for the GPU, which works asynchronously."""
    if rank.device.type == "cuda":
        torch.cuda.synchronize(rank.device)


def _store_rates(output: Store) -> dict[str, float]:
    """Return bytes a second of writing and reading, and seconds of the smallest write."""
    data = os.urandom(_OBJECT_BYTES)
    begun = time.perf_counter()
    output.put(_PROBE, b"x")
    latency = time.perf_counter() - begun
    output.put(_PROBE, data)
    written = time.perf_counter() - begun - latency
    begun = time.perf_counter()
    output.get(_PROBE)
    read = time.perf_counter() - begun
    output.delete(_PROBE)
    return {
        "latency_seconds": latency,
        "put_bytes": _OBJECT_BYTES / written,
        "get_bytes": _OBJECT_BYTES / read,
    }
