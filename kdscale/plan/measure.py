"""What a worker measures for a calibration: the real forward, encoder, steps and store.

Models have random weights and the run's own shapes, micro-batches, ZeRO stages and codec. A
teacher that is there already is taken as it is; one that would take too long is cut to its first
layers.
All ranks compute at once, so that what they take from each other is in the rates.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch

from kdscale.cache.codecs import make_codec, uniforms
from kdscale.cache.fidelity.stored_size import AtRest
from kdscale.cache.format.prior import count_prior
from kdscale.config import RunConfig
from kdscale.config.training import TrainingConfig
from kdscale.data.rows.order import spread
from kdscale.data.rows.prepared import open_prepared
from kdscale.distill.batches import MicroBatch
from kdscale.distill.objective import DistillationLoss, LabelsLoss
from kdscale.distributed.rank import Rank, current_rank
from kdscale.losses.fused import head_and_loss
from kdscale.models.forward import (
    RowTensors,
    compute_logits,
    row_tensors,
    target_logits,
)
from kdscale.models.head import ModelWithHead
from kdscale.models.hf_folder import ModelReference
from kdscale.models.load import build_model
from kdscale.models.sharded import load_teacher, place_teacher
from kdscale.store import Store
from kdscale.train.backends.base import make_backend
from kdscale.train.batches import micro_batches_per_rank
from kdscale.train.loop import Callbacks, LossSums, Progress, Step, train
from kdscale.train.throughput import peak_memory

RESULT = "calibration-measured.json"
_PROBE = "calibration-probe"
_OBJECT_BYTES = 8 << 20
_ENCODE_REPEATS = 3
_REST_POSITIONS, _PRIOR_ROWS = 16_384, 8192


@dataclass(frozen=True)
class AtHand:
    """A teacher that is complete, and the rows it is to run over."""

    teacher: ModelReference
    prepared: Store


@dataclass(frozen=True)
class MeasureJob:
    """What a worker needs; `teacher` and `student` are transformers configs."""

    config: RunConfig
    output: Store
    teacher: Any
    student: Any
    vocab_size: int
    budget: float  # seconds for each of forward and steps
    at_hand: AtHand | None  # else the teacher has random weights

    def run(self) -> None:
        """Measure on this rank."""
        measure(self)


def measure(spec: MeasureJob) -> None:
    """Measure on this rank, with all others; rank 0 writes `RESULT`.

    It holds seconds of a forward, of an encoded forward, of a step of the student (and of a teacher
    that is trained here), of the store, and of all.
    """
    worker = current_rank()
    started = time.perf_counter()
    found: dict[str, Any] = {"base_bytes": peak_memory(torch.device("cpu"))}
    worker.say(f"a process takes {found['base_bytes'] / 2**30:.2f} GiB before it has a model")
    model = _teacher(spec, worker)
    found["forward"], found["encode"] = _forward_seconds(spec, worker, model)
    if spec.at_hand is not None and spec.config.cache.pack:
        found["at_rest"] = _payload_at_rest(spec, spec.at_hand, worker, model)
    del model
    found["step"] = _student_seconds(spec, worker)
    training = spec.config.teacher.training
    if training is not None:
        found["teacher_step"] = _teacher_seconds(spec, training, worker)
    if worker.rank == 0:
        found |= _store_seconds(spec.output)
        device = worker.device
        found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        found["loop"] = time.perf_counter() - started
        spec.output.put(RESULT, json.dumps(found).encode())
    worker.barrier()


def _teacher(spec: MeasureJob, worker: Rank) -> torch.nn.Module:
    """The run's own teacher if it is there, else one like it."""
    zero = spec.config.cache.capture.zero
    if spec.at_hand is not None:
        own = spec.at_hand.teacher
        return load_teacher(own.local(), worker, zero, own.revision)
    return place_teacher(lambda: build_model(spec.teacher, seed=0).to(worker.dtype), worker, zero)


def _forward_seconds(spec: MeasureJob, worker: Rank, model: torch.nn.Module) -> tuple[float, float]:
    """Median seconds of a micro-batch's forward of the teacher, and of encoding its logits."""
    capture = spec.config.cache.capture
    codec = make_codec(spec.config.cache.codec, spec.vocab_size)
    ids, segments = _rows(spec, capture.micro_batch_size, worker.device)
    samples = torch.randint(256, (len(ids), 16), dtype=torch.uint8, device=worker.device)
    encodes: list[float] = []

    @torch.no_grad()
    def forward() -> None:
        logits = compute_logits(model, ids, segments, spec.vocab_size).flatten(0, 1)
        _finish(worker)
        if len(encodes) < _ENCODE_REPEATS:
            begun = time.perf_counter()
            noise = uniforms(0, samples, ids.shape[1], codec.streams).flatten(0, 1)
            codec.encode(logits, noise).payload.cpu()
            encodes.append(time.perf_counter() - begun)

    for _ in range(_ENCODE_REPEATS):
        forward()
    worker.say("the teacher runs")
    return _repeated(forward, spec.budget, worker), median(encodes)


@torch.no_grad()
def _payload_at_rest(
    spec: MeasureJob, at_hand: AtHand, worker: Rank, model: torch.nn.Module
) -> float:
    """Bytes that a position's payload takes in the store, from rows spread over the text. All ranks
    run the same rows, as a sharded teacher needs them to."""
    cache, size = spec.config.cache, spec.config.cache.capture.micro_batch_size
    table = open_prepared(at_hand.prepared).split("train")
    texts = table.take(spread(min(_PRIOR_ROWS, len(table)), len(table)))
    codec = make_codec(cache.codec, spec.vocab_size)
    prior = count_prior([(texts.input_ids, texts.loss_mask)], spec.vocab_size)
    rest = AtRest(codec, prior, chunk=cache.sequences_per_chunk * spec.config.data.seq_len)
    wanted = max(size, _REST_POSITIONS // spec.config.data.seq_len)
    chosen = spread(min(wanted, len(table)), len(table))
    for first in range(0, len(chosen), size):
        rows = table.take(chosen[first : first + size])
        batch = row_tensors(rows, worker.device)
        logits = target_logits(model, batch, spec.vocab_size)
        noise = torch.rand(len(logits), codec.streams, dtype=torch.float64, device=worker.device)
        encoded = codec.encode(logits, noise, temperature=cache.temperature)
        rest.add(rows.input_ids[rows.loss_mask], encoded.payload.cpu().numpy())
    return rest.bytes_per_position()


def _student_seconds(spec: MeasureJob, worker: Rank) -> float:
    """Median seconds of the student's step on targets of the run's codec, as they are decoded."""
    training, length = spec.config.distill.training, spec.config.data.seq_len
    codec = make_codec(spec.config.cache.codec, spec.vocab_size)
    cached = spec.config.distill.targets == "cache"
    loss = DistillationLoss(spec.config, codec, None) if cached else LabelsLoss()
    rows = _rows_of(training, worker)
    logits = torch.randn(length, spec.vocab_size)
    noise = torch.rand(length, codec.streams, dtype=torch.float64)
    payload = codec.encode(logits, noise).payload.expand(rows, length, -1).to(worker.device)
    ids, segments = _rows(spec, rows, worker.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, -1] = False
    entropy = torch.zeros(rows, device=worker.device)
    tensors = RowTensors(ids, segments, mask, torch.roll(ids, -1, dims=1))
    batch = MicroBatch(tensors, payload, entropy)
    return _step_seconds(spec, spec.student, training, batch, loss, int(mask.sum()), worker)


def _teacher_seconds(spec: MeasureJob, training: TrainingConfig, worker: Rank) -> float:
    """The same of the teacher's training, on labels."""
    ids, segments = _rows(spec, _rows_of(training, worker), worker.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, -1] = False

    def loss(model: ModelWithHead, batch: Any, step: int) -> LossSums:
        labels = torch.roll(ids, -1, dims=1)[mask]
        found = head_and_loss(model.hidden(ids, segments)[mask], model.head, labels).objective
        return found, {"loss": found.detach()}

    return _step_seconds(spec, spec.teacher, training, ids, loss, int(mask.sum()), worker)


def _step_seconds(
    spec: MeasureJob,
    shape: Any,
    training: TrainingConfig,
    batch: Any,
    loss: Any,
    targets: int,
    worker: Rank,
) -> float:
    """Median seconds of a step of the real loop: forward, backward, reduction, update."""
    count = micro_batches_per_rank(
        training.global_batch_size, training.micro_batch_size, worker.world_size
    )
    wrap = partial(ModelWithHead, vocab_size=spec.vocab_size)
    build = partial(build_model, shape, 0)
    backend = make_backend(build, wrap, training, count, worker)
    every = training.model_copy(update={"steps": 1000, "log_every": 1000, "validate_every": 1000})
    hooks = Callbacks(
        log=lambda step, tokens, metrics: None,
        validate=lambda: {"loss": 0.0},
        save=lambda progress: None,
        progress=lambda done, tokens: None,
        extra=lambda step, indices: {},
    )

    def run(steps: int) -> list[float]:
        stamps: list[float] = []

        def timed() -> Iterator[Step[Any]]:
            for _ in range(steps):
                _finish(worker)
                stamps.append(time.perf_counter())
                yield Step([batch] * count, count * targets, np.arange(training.global_batch_size))

        train(
            backend=backend,
            training=every.model_copy(update={"steps": steps}),
            worker=worker,
            start=Progress(),
            steps=timed(),
            compute_loss=loss,
            hooks=hooks,
        )
        stamps.append(time.perf_counter())
        return [after - before for before, after in pairwise(stamps)]

    first = run(2)[-1]
    worker.say(f"a step of {shape.model_type} takes {first:.3g} s")
    return median(run(_repeats(first, spec.budget, worker)))


def _rows_of(training: TrainingConfig, worker: Rank) -> int:
    """Rows of a rank's micro-batch."""
    return min(training.micro_batch_size, -(-training.global_batch_size // worker.world_size))


def _rows(spec: MeasureJob, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and segments [count, T]; two documents a row where rows are packed, as attention
    then takes its mask."""
    length = spec.config.data.seq_len
    ids = torch.randint(spec.vocab_size, (count, length), device=device)
    segments = torch.ones_like(ids)
    if spec.config.data.pack:
        segments[:, length // 2 :] = 2
    return ids, segments


def _repeated(work: Callable[[], None], budget: float, worker: Rank) -> float:
    """Median seconds of `work`, which is collective, within the budget."""
    begun = time.perf_counter()
    work()
    repeats = _repeats(time.perf_counter() - begun, budget, worker)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return median(times)


def _repeats(seconds: float, budget: float, worker: Rank) -> int:
    """How often what takes `seconds` fits the budget; the same on every rank."""
    found: int = worker.broadcast(min(200, max(3, int(budget / max(seconds, 1e-6)))))
    return found


def _finish(worker: Rank) -> None:
    """A GPU works behind the caller's back."""
    if worker.device.type == "cuda":
        torch.cuda.synchronize(worker.device)


def _store_seconds(output: Store) -> dict[str, float]:
    """Bytes a second of writing and reading, and seconds of the smallest write."""
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
