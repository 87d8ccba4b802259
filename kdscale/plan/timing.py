"""How long each stage takes, by cause.

A rank's rate is what was measured, or the hardware's peak times the utilisation assumed; of a CPU
times the worker's cores, as far as the machine has them. Work is counted as the stages do it: in
rounds of shards, in micro-batches of whole ranks, so that a rank without work shows as time.
"""

import math
from dataclasses import dataclass, fields

from kdscale.config.training import TrainingConfig, WorkersConfig
from kdscale.plan.cache_size import cache_bytes, requests
from kdscale.plan.inputs import Setting, workers_of
from kdscale.plan.shape import Shape
from kdscale.run.stage_names import ON_WORKERS
from kdscale.train.batches import micro_batches_per_rank

# Assumed where nothing was measured. A worker group of Ray Train takes about 15 s around a trivial
# loop on 2 idle cores, where Ray runs already; with CUDA, NCCL and a fresh node's files a minute.
_START_UP = {"cpu": 15.0, "gpu": 60.0}
_STORE_BYTES = {"cpu": 200e6, "gpu": 1e9}  # a second and machine
_LATENCY = 0.02
# What encoding adds to a forward: benchmarks/results/capture_overhead.json.
_ENCODE_SHARE = 0.02
# Text cleaned, tokenised and packed a second and core, bytes, and what goes before.
_PREPARE_BYTES, _PREPARE_START = 2e6, 8.0
# Building, checking, publishing and tracking a model beside its steps.
_ARM_SECONDS = 1.2
_DEPTH_LATENCY = 20e-6  # of a collective, a rank


@dataclass(frozen=True)
class Seconds:
    """Wall time of a stage."""

    start_up: float = 0.0
    compute: float = 0.0
    communication: float = 0.0  # not hidden behind computing
    encoding: float = 0.0
    store: float = 0.0  # loading models, checkpoints, chunks; not hidden either
    validation: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


def rate(setting: Setting, workers: WorkersConfig, *, training: bool) -> float:
    """FLOPs a second of one rank: measured, or peak x utilisation x cores (of a CPU)."""
    measured, hardware = setting.measured, setting.hardware
    if measured is not None:
        return measured.training_flops if training else measured.forward_flops
    share = hardware.training_utilisation if training else hardware.forward_utilisation
    if setting.is_gpu:
        return hardware.flops * share
    cores = min(workers.cpus, hardware.devices_per_node / workers.count)
    return hardware.flops * share * cores


def training_rate(setting: Setting, stage: str) -> float:
    """FLOPs a second of a rank that trains: of the teacher's own measurement where there is one."""
    measured = setting.measured
    if stage == "teacher" and measured is not None and measured.teacher_flops is not None:
        return measured.teacher_flops
    return rate(setting, workers_of(stage, setting.config), training=True)


def group_start(setting: Setting) -> float:
    """Until the first line of a worker group, and from its last to the return."""
    measured = setting.measured
    return measured.start_up_seconds if measured else _START_UP[setting.hardware.kind]


def start_up(stage: str, setting: Setting) -> float:
    """A group's start, where the workers are not those of the stage before: CPU workers go on with
    the next stage that asks for the same ones (kdscale/workers/group.py)."""
    config = setting.config
    skipped = {"teacher"} if config.teacher.training is None else set()
    skipped |= {"cache"} if config.cache.reuse is not None else set()
    stages = [name for name in ON_WORKERS if name not in skipped]
    before = stages[: stages.index(stage)][-1:]
    alike = [workers_of(name, config) == workers_of(stage, config) for name in before]
    return 0.0 if any(alike) and not setting.is_gpu else group_start(setting)


def store_seconds(n_bytes: float, setting: Setting, *, write: bool) -> float:
    """Of a machine: latency + bytes / throughput, measured or assumed."""
    measured = setting.measured
    if measured is None:
        return _LATENCY + n_bytes / _STORE_BYTES[setting.hardware.kind]
    speed = measured.put_bytes if write else measured.get_bytes
    return measured.latency_seconds + n_bytes / speed


def all_reduce(n_bytes: float, workers: int, setting: Setting) -> float:
    """Seconds of a ring: 2 (n - 1) / n bytes / link + 2 (n - 1) latency (Patarasuk and Yuan 2009,
    "Bandwidth optimal all-reduce algorithms")."""
    if workers == 1:
        return 0.0
    moved = 2 * (workers - 1) / workers * n_bytes
    return moved / setting.link(workers) + 2 * (workers - 1) * _DEPTH_LATENCY


def _measured_alike(workers: int, setting: Setting) -> bool:
    """Whether the measured rates have the communication of so many workers in them."""
    return setting.measured is not None and workers <= setting.measured.workers


def step_seconds(
    shape: Shape, training: TrainingConfig, stage: str, setting: Setting
) -> tuple[float, float]:
    """(compute, exposed communication) of a step.

    compute = micro-batches x rows x T x training FLOPs / rate, of the rank with most rows. Stages
    0 to 2 move a gradient of w N bytes (w 4 for DDP, p for ZeRO) once a step, in the time that the
    last backward, 2/3 of a micro-batch, hides; stage 3 moves 1.5 times that, weights included, in
    every micro-batch (ZeRO, section 7), hidden behind the whole of it.
    """
    workers, length = workers_of(stage, setting.config), setting.tokens.seq_len
    ranks = workers.count
    count = micro_batches_per_rank(training.global_batch_size, training.micro_batch_size, ranks)
    rows = -(-training.global_batch_size // ranks)
    flops = shape.training_flops(length, training.activation_checkpointing) * length
    compute = rows * flops / training_rate(setting, stage)
    if _measured_alike(ranks, setting):
        return compute, 0.0
    width = 4 if training.zero.stage == 0 else setting.width
    once = all_reduce(width * shape.parameters, ranks, setting)
    if training.zero.stage == 3:
        return compute, max(0.0, 1.5 * count * once - compute)
    return compute, max(0.0, once - 2 / 3 * compute / count)


def training_seconds(
    shape: Shape, training: TrainingConfig, stage: str, setting: Setting, arms: int = 1
) -> Seconds:
    """Of `arms` trainings one after the other: steps, validations, checkpoints, publishing.

    A validation is a forward of its rows, a checkpoint 12 N bytes over the machines.
    """
    workers = workers_of(stage, setting.config)
    ranks, length = workers.count, setting.tokens.seq_len
    compute, exposed = step_seconds(shape, training, stage, setting)
    rows = -(-min(training.validation_sequences, setting.tokens.evaluation_sequences[0]) // ranks)
    validations = math.ceil(training.steps / training.validate_every)
    forward = rows * length * shape.forward_flops(length) / training_rate(setting, stage)
    machines = math.ceil(ranks / setting.hardware.devices_per_node)
    checkpoints = math.ceil(training.steps / training.checkpoint_every)
    state = store_seconds(12 * shape.parameters / machines, setting, write=True)
    model = store_seconds(4 * shape.parameters, setting, write=True)
    return Seconds(
        start_up=start_up(stage, setting),
        compute=arms * training.steps * compute,
        communication=arms * training.steps * exposed,
        store=arms * (checkpoints * state + model + _ARM_SECONDS),
        validation=arms * validations * forward,
    )


def capture_seconds(setting: Setting) -> Seconds:
    """Rank r takes shards r, r + n, ...: time is that of the rank with most, rounds = ceil(shards /
    n) shards of rows x T positions.

    Under ZeRO-3 a forward gathers p N (n - 1) / n bytes while the one before computes: what it
    takes longer is exposed. Encoding goes beside the forward on a GPU (2 % of it are left), between
    forwards on a CPU. Uploads are hidden unless the store is slower than the capture.
    """
    config, shape, tokens = setting.config, setting.teacher, setting.tokens
    if config.cache.reuse is not None:
        return Seconds()
    capture = config.cache.capture
    workers, length = capture.workers, tokens.seq_len
    shards = math.ceil(tokens.captured_rows / config.cache.sequences_per_shard)
    rounds = math.ceil(shards / workers.count)
    rows = min(rounds * config.cache.sequences_per_shard, tokens.captured_rows)
    forwards = rounds * math.ceil(
        min(rows, config.cache.sequences_per_shard) / capture.micro_batch_size
    )
    compute = rows * length * shape.forward_flops(length) / rate(setting, workers, training=False)
    exposed = 0.0
    if capture.zero.stage == 3 and not _measured_alike(workers.count, setting):
        gather = 0.5 * all_reduce(setting.width * shape.parameters, workers.count, setting)
        exposed = max(0.0, forwards * gather - compute)
    encoding = _ENCODE_SHARE * compute
    if setting.measured is not None and not setting.is_gpu:
        encoding = rows * length * tokens.targets_share / setting.measured.encode_tokens
    machines = math.ceil(workers.count / setting.hardware.devices_per_node)
    written = cache_bytes(config.cache, config.cache.codec, setting).at_rest / machines
    upload = store_seconds(written, setting, write=True)
    load = store_seconds(setting.width * shape.parameters, setting, write=False)
    return Seconds(
        start_up=start_up("cache", setting),
        compute=compute,
        communication=exposed,
        encoding=encoding,
        store=load + max(0.0, upload - compute) + _ARM_SECONDS,
    )


def distill_seconds(setting: Setting) -> Seconds:
    """The student, then its baseline. Chunks are read ahead: only what the store takes longer than
    the steps is waited for. An online teacher adds its forward to each step of the student."""
    distill = setting.config.distill
    arms = 2 if distill.baseline else 1
    found = training_seconds(setting.student, distill.training, "distill", setting, arms)
    machines = math.ceil(distill.workers.count / setting.hardware.devices_per_node)
    if distill.targets == "online":
        more = online_forward_seconds(setting)
        return _added(found, compute=more)
    read = store_seconds(requests(setting).read_bytes / machines, setting, write=False)
    return _added(found, store=max(0.0, read - found.compute))


def online_forward_seconds(setting: Setting) -> float:
    """A teacher's forward over all that one student reads, on the student's workers."""
    distill, length = setting.config.distill, setting.tokens.seq_len
    rows = -(-distill.training.global_batch_size // distill.workers.count) * distill.training.steps
    flops = rows * length * setting.teacher.forward_flops(length)
    return flops / rate(setting, distill.workers, training=False)


def evaluate_seconds(setting: Setting) -> Seconds:
    """A forward of teacher and students over every evaluation set, and loading them."""
    config, length = setting.config, setting.tokens.seq_len
    workers, arms = config.evaluate.workers, 2 if config.distill.baseline else 1
    rows = sum(-(-count // workers.count) for count in setting.tokens.evaluation_sequences)
    teacher = setting.teacher.forward_flops(length)
    student = arms * setting.student.forward_flops(length)
    compute = rows * length * (teacher + student) / rate(setting, workers, training=False)
    weights = setting.teacher.parameters + arms * setting.student.parameters
    return Seconds(
        start_up=start_up("evaluate", setting),
        compute=compute,
        store=store_seconds(setting.width * weights, setting, write=False),
    )


def prepare_seconds(setting: Setting) -> Seconds:
    """Reading, cleaning and tokenising on the cluster's cores: bytes / (2 MB/s x cores)."""
    tokens, hardware = setting.tokens, setting.hardware
    text = tokens.corpus_bytes or tokens.rows * tokens.seq_len * 4
    cores = hardware.devices_per_node * (1 if hardware.kind == "cpu" else 8)
    return Seconds(start_up=_PREPARE_START, compute=text / (_PREPARE_BYTES * cores))


def seconds_of(stage: str, setting: Setting) -> Seconds:
    """Of a stage by its name; nothing of one that has nothing to do."""
    config = setting.config
    if stage == "teacher":
        training = config.teacher.training
        if training is None:
            return Seconds()
        return training_seconds(setting.teacher, training, "teacher", setting)
    parts = {
        "prepare": prepare_seconds,
        "cache": capture_seconds,
        "distill": distill_seconds,
        "evaluate": evaluate_seconds,
    }
    return parts[stage](setting)


def _added(found: Seconds, **more: float) -> Seconds:
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    return Seconds(**{name: value + more.get(name, 0.0) for name, value in values.items()})
