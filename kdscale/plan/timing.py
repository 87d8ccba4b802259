"""Time of each stage, by cause.

A rank's rate is the measured one, or the hardware's peak times the utilisation assumed; of a CPU
times the worker's cores, as far as the machine has them. Work is counted as the stages do it: in
rounds of cache shards, in micro-batches of whole ranks, so that a rank without work shows as time.
"""

import math
from dataclasses import dataclass, fields, replace

from kdscale.config.training import TeacherGroup, TrainingConfig, WorkersConfig
from kdscale.plan.cache_size import cache_bytes, requests
from kdscale.plan.evaluation import alone_seconds
from kdscale.plan.groups import group_link, teacher_ranks
from kdscale.plan.inputs import PlanInputs, Shape, rank_rows, workers_of
from kdscale.run.stage_names import ON_WORKERS
from kdscale.train.batches import micro_batches_per_rank

# Assumed where nothing was measured. A worker group of Ray Train takes about 15 s around a trivial
# loop on 2 idle cores, where Ray runs already; with CUDA, NCCL and a fresh node's files a minute.
_START_UP = {"cpu": 15.0, "gpu": 60.0}
_STORE_BYTES = {"cpu": 200e6, "gpu": 1e9}  # a second and machine
_LATENCY = 0.02
# Share of a forward that encoding adds: benchmarks/results/capture_overhead.json.
_ENCODE_SHARE = 0.02
# Text cleaned, tokenised and packed a second and core, bytes, after a start of seconds.
_PREPARE_BYTES, _PREPARE_START = 2e6, 8.0
# Building, checking, publishing and tracking a model beside its steps.
_MODEL_SECONDS = 1.2
_HOP_LATENCY = 20e-6  # of a collective, a rank


@dataclass(frozen=True)
class Seconds:
    """Wall time of a stage."""

    start_up: float = 0.0
    compute: float = 0.0
    communication: float = 0.0  # not hidden behind computing
    encoding: float = 0.0
    store: float = 0.0  # loading models, checkpoints, chunks; not hidden either
    validation: float = 0.0
    alone: float = 0.0  # of one rank, while the others wait

    @property
    def total(self) -> float:
        """Sum of all causes."""
        return sum(getattr(self, field.name) for field in fields(self))


def rate(inputs: PlanInputs, workers: WorkersConfig, *, training: bool) -> float:
    """Return FLOPs a second of one rank: measured, or peak x utilisation x cores (of a CPU)."""
    measured, hardware = inputs.measured, inputs.hardware
    if measured is not None:
        return measured.training_flops if training else measured.forward_flops
    share = hardware.training_utilisation if training else hardware.forward_utilisation
    if inputs.is_gpu:
        return hardware.flops * share
    cores = min(workers.cpus, hardware.devices_per_node / workers.count)
    return hardware.flops * share * cores


def training_rate(inputs: PlanInputs, stage: str) -> float:
    """Return FLOPs a second of a rank that trains; the teacher may have its own measurement."""
    measured = inputs.measured
    if stage == "teacher" and measured is not None and measured.teacher_flops is not None:
        return measured.teacher_flops
    return rate(inputs, workers_of(stage, inputs.config), training=True)


def group_start(inputs: PlanInputs) -> float:
    """Return seconds to the first line of a worker group, and from its last to the return."""
    measured = inputs.measured
    return measured.start_up_seconds if measured else _START_UP[inputs.hardware.kind]


def start_up(stage: str, inputs: PlanInputs) -> float:
    """Return seconds of a group's start, 0 where the stage takes over the workers before it.

    CPU workers continue with the next stage that asks for the same ones (workers/group.py).
    """
    config = inputs.config
    skipped = {"teacher"} if config.teacher.training is None else set()
    skipped |= {"cache"} if config.cache.reuse is not None else set()
    stages = [name for name in ON_WORKERS if name not in skipped]
    before = stages[: stages.index(stage)][-1:]
    alike = [workers_of(name, config) == workers_of(stage, config) for name in before]
    return 0.0 if any(alike) and not inputs.is_gpu else group_start(inputs)


def store_seconds(n_bytes: float, inputs: PlanInputs, *, write: bool) -> float:
    """Return seconds of one machine: latency + bytes / throughput, measured or assumed."""
    measured = inputs.measured
    if measured is None:
        return _LATENCY + n_bytes / _STORE_BYTES[inputs.hardware.kind]
    speed = measured.put_bytes if write else measured.get_bytes
    return measured.latency_seconds + n_bytes / speed


def all_reduce(n_bytes: float, workers: int, inputs: PlanInputs) -> float:
    """Return seconds of a ring: 2 (n - 1) / n bytes / link + 2 (n - 1) latency.

    Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms".
    """
    if workers == 1:
        return 0.0
    moved = 2 * (workers - 1) / workers * n_bytes
    return moved / inputs.link(workers) + 2 * (workers - 1) * _HOP_LATENCY


def all_gather(n_bytes: float, ranks: int, link: float) -> float:
    """Return seconds of a ring of `ranks`: (n - 1) / n bytes / link + (n - 1) latency."""
    return (ranks - 1) / ranks * n_bytes / link + (ranks - 1) * _HOP_LATENCY


def _is_measured(workers: int, inputs: PlanInputs) -> bool:
    """Tell whether the measured rates include the communication of so many workers."""
    return inputs.measured is not None and workers <= inputs.measured.workers


def step_seconds(
    shape: Shape, training: TrainingConfig, stage: str, inputs: PlanInputs
) -> tuple[float, float]:
    """Return (compute, exposed communication) of a step.

    compute = micro-batches x sequences x T x training FLOPs / rate, of the rank with most
    sequences. Stages 0 to 2 move a gradient of w N bytes (w 4 for DDP, p for ZeRO) once a step, in
    the time that the last backward, 2/3 of a micro-batch, hides; stage 3 moves 1.5 times that,
    weights included, in every micro-batch (ZeRO, section 7), hidden behind the whole of it. With
    adapters, N is theirs but for the weights of stage 3.
    """
    ranks, length = workers_of(stage, inputs.config).count, inputs.tokens.seq_len
    count = micro_batches_per_rank(training.global_batch_size, training.micro_batch_size, ranks)
    flops = shape.training_flops(length, training.activation_checkpointing) * length
    compute = rank_rows(training, ranks) * flops / training_rate(inputs, stage)
    if _is_measured(ranks, inputs):
        return compute, 0.0
    width = 4 if training.zero.stage == 0 else inputs.width
    once = all_reduce(width * shape.trained, ranks, inputs)
    if training.zero.stage == 3:
        gathered = all_reduce(width * shape.parameters, ranks, inputs)
        return compute, max(0.0, count * (gathered + once / 2) - compute)
    return compute, max(0.0, once - 2 / 3 * compute / count)


def training_seconds(
    shape: Shape, training: TrainingConfig, stage: str, inputs: PlanInputs, models: int = 1
) -> Seconds:
    """Return the time of `models` trainings in sequence, from first step to publishing.

    A validation is a forward of its sequences, a checkpoint 12 N bytes over the machines, N being
    what is trained.
    """
    ranks, length = workers_of(stage, inputs.config).count, inputs.tokens.seq_len
    compute, exposed = step_seconds(shape, training, stage, inputs)
    rows = -(-min(training.validation_sequences, inputs.tokens.evaluation_sequences[0]) // ranks)
    validations = math.ceil(training.steps / training.validate_every)
    forward = rows * length * shape.forward_flops(length) / training_rate(inputs, stage)
    checkpoints = math.ceil(training.steps / training.checkpoint_every)
    state = store_seconds(12 * shape.trained / inputs.machines(ranks), inputs, write=True)
    base = shape.parameters if stage == "distill" and inputs.copies_base else 0
    model = store_seconds(4 * (shape.trained + base), inputs, write=True)
    return Seconds(
        start_up=start_up(stage, inputs),
        compute=models * training.steps * compute,
        communication=models * training.steps * exposed,
        store=models * (checkpoints * state + model + _MODEL_SECONDS),
        validation=models * validations * forward,
    )


def teacher_seconds(inputs: PlanInputs) -> Seconds:
    """Return the time of the teacher's training; none where it exists already."""
    training = inputs.config.teacher.training
    if training is None:
        return Seconds()
    return training_seconds(inputs.teacher, training, "teacher", inputs)


def capture_seconds(inputs: PlanInputs) -> Seconds:
    """Return the time of the rank with most cache shards: rank r captures r, r + n, ...

    Rounds = ceil(shards / n). Under ZeRO-3 a forward gathers p N (g - 1) / g bytes of a group of g
    while the one before computes: the excess is exposed. Encoding runs beside the forward on a GPU
    (2 % of it are left), between forwards on a CPU. Uploads are hidden unless the store is slower
    than the capture.
    """
    config, shape, tokens = inputs.config, inputs.teacher, inputs.tokens
    if config.cache.reuse is not None:
        return Seconds()
    capture, per_shard = config.cache.capture, config.cache.sequences_per_shard
    workers, length = capture.workers, tokens.seq_len
    rounds = math.ceil(inputs.cache_shards / workers.count)
    rows = min(rounds * per_shard, tokens.captured_rows)
    forwards = rounds * math.ceil(min(rows, per_shard) / capture.micro_batch_size)
    compute = rows * length * shape.forward_flops(length) / rate(inputs, workers, training=False)
    exposed = 0.0
    if capture.zero.stage == 3:
        exposed = exposed_gathering(forwards, compute, capture.teacher_group, workers.count, inputs)
    encoding = _ENCODE_SHARE * compute
    if inputs.measured is not None and not inputs.is_gpu:
        encoding = rows * length * tokens.targets_share / inputs.measured.encode_tokens
    written = cache_bytes(config.cache, config.cache.codec, inputs).stored
    upload = store_seconds(written / inputs.machines(workers.count), inputs, write=True)
    load = store_seconds(inputs.width * shape.parameters, inputs, write=False)
    return Seconds(
        start_up=start_up("cache", inputs),
        compute=compute,
        communication=exposed,
        encoding=encoding,
        store=load + max(0.0, upload - compute) + _MODEL_SECONDS,
    )


def distill_seconds(inputs: PlanInputs) -> Seconds:
    """Return the time of the student, then its baseline.

    Chunks are read ahead: only the store's excess over the steps is waited for. An online teacher
    adds its forward, and what gathering it takes longer, to each step of the student.
    """
    distill = inputs.config.distill
    own = inputs.in_student_tokens
    found = training_seconds(
        inputs.student, distill.training, "distill", own, models=inputs.students
    )
    if distill.targets == "online":
        compute, exposed = online_forward_seconds(inputs)
        communication = found.communication + exposed
        return replace(found, compute=found.compute + compute, communication=communication)
    read_bytes = requests(inputs).read_bytes / inputs.machines(distill.workers.count)
    read = store_seconds(read_bytes, inputs, write=False)
    return replace(found, store=found.store + max(0.0, read - found.compute))


def online_forward_seconds(inputs: PlanInputs) -> tuple[float, float]:
    """Return (compute, exposed gathering) of a teacher's forwards over one student's steps.

    On the student's workers, in its micro-batches. A teacher that no run has beside a student is
    placed as that of the capture is.
    """
    config, length = inputs.config, inputs.tokens.seq_len
    training, workers = config.distill.training, config.distill.workers
    rows = rank_rows(training, workers.count) * training.steps
    flops = rows * length * inputs.teacher.forward_flops(length)
    compute = flops / rate(inputs, workers, training=False)
    is_online = config.distill.targets == "online"
    placed = config.distill.online if is_online else config.cache.capture
    if placed.teacher_sharding == "none":
        return compute, 0.0
    size, batch = training.micro_batch_size, training.global_batch_size
    forwards = training.steps * micro_batches_per_rank(batch, size, workers.count)
    group = placed.teacher_group
    return compute, exposed_gathering(forwards, compute, group, workers.count, inputs)


def exposed_gathering(
    forwards: int, compute: float, group: TeacherGroup, workers: int, inputs: PlanInputs
) -> float:
    """Return seconds that gathering a ZeRO-3 teacher takes beyond the `compute` of its forwards.

    Each gathers p N (g - 1) / g bytes over the link of a group of g, while the one before it
    computes.
    """
    if _is_measured(workers, inputs):
        return 0.0
    ranks = teacher_ranks(group, workers, inputs)
    n_bytes = inputs.width * inputs.teacher.parameters
    gather = all_gather(n_bytes, ranks, group_link(ranks, workers, inputs))
    return max(0.0, forwards * gather - compute)


def evaluate_seconds(inputs: PlanInputs) -> Seconds:
    """Return the time of loading teacher and students and running them on all evaluation sets."""
    workers, length = inputs.config.evaluate.workers, inputs.tokens.seq_len
    rows = sum(-(-count // workers.count) for count in inputs.tokens.evaluation_sequences)
    students = inputs.evaluated_students * inputs.student.forward_flops(length)
    flops = inputs.teacher.forward_flops(length) + students
    students_weights = inputs.evaluated_students * inputs.student.parameters
    weights = inputs.teacher.parameters + students_weights
    speed = rate(inputs, workers, training=False)
    return Seconds(
        start_up=start_up("evaluate", inputs),
        compute=rows * length * flops / speed,
        store=store_seconds(inputs.width * weights, inputs, write=False),
        alone=alone_seconds(inputs, speed),
    )


def prepare_seconds(inputs: PlanInputs) -> Seconds:
    """Return the time of reading, cleaning and tokenising: bytes / (2 MB/s x cores)."""
    tokens, hardware = inputs.tokens, inputs.hardware
    text = tokens.corpus_bytes or tokens.rows * tokens.seq_len * 4
    cores = hardware.devices_per_node * (1 if hardware.kind == "cpu" else 8)
    return Seconds(start_up=_PREPARE_START, compute=text / (_PREPARE_BYTES * cores))


_SECONDS = {
    "prepare": prepare_seconds,
    "teacher": teacher_seconds,
    "cache": capture_seconds,
    "distill": distill_seconds,
    "evaluate": evaluate_seconds,
}


def seconds_of(stage: str, inputs: PlanInputs) -> Seconds:
    """Return the time of a stage by its name."""
    return _SECONDS[stage](inputs)
