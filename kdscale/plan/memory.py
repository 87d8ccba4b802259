"""What a rank holds at its peak, part by part.

p is the width of an element in the computing type (2 bytes on a GPU, 4 on a CPU), N a model's
parameters, n the ranks, B the rows of a micro-batch, T their length, V the vocabulary. On a CPU all
is in the host's memory; on a GPU what stands in `host` is beside it. Buffers that last for a
moment and are small (norms, learning rates, the input's own tokens) are left out.
"""

import math
from dataclasses import dataclass

from kdscale.cache.codecs import make_codec
from kdscale.config.training import TrainingConfig, ZeroConfig
from kdscale.plan.inputs import Setting, workers_of
from kdscale.plan.shape import Shape

Parts = dict[str, int]

# DeepSpeed's defaults, elements: gradients reduced at a time; parameters kept gathered at stage 3.
_REDUCE_BUCKET = 500_000_000
_MOST_LIVE = 1_000_000_000
# Of a process before it has a model, bytes: Python, torch, Ray, transformers; CUDA's libraries.
_BASE = {"cpu": 600 << 20, "gpu": 3 << 30}
# What a process on a CPU takes besides, once it works: maps of files, the allocator's reserve,
# libraries that load at their first use; and DeepSpeed's engine. Measured by benchmarks/plan.py.
_AT_WORK, _ENGINE = 90 << 20, 100 << 20
# Positions of a chunk of the fused loss, see losses/fused.py.
_LOSS_POSITIONS = 256
# Elements of an encoder's chunk, see cache/codecs/chunked.py, and its working tensors of 4 bytes.
_ENCODE_ELEMENTS = {"cpu": 1 << 20, "gpu": 1 << 26}
_ENCODE_TENSORS = 4
# Units that an encoder holds at most, see teacher/encoder.py.
_SHARDS_HELD = 4
# A row beside its payload: ids and segments in int32, the mask; see cache/format/row_records.py.
_ROW_BYTES_A_POSITION = 9


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank by part. On a CPU `device` is the process and `host` is empty."""

    device: Parts
    host: Parts

    @property
    def total(self) -> int:
        """Of the device."""
        return sum(self.device.values())


def layer_elements(shape: Shape, setting: Setting) -> int:
    """Elements that a layer keeps for the backward pass, a token: 6 h (8 h on a GPU) + 2 q + 2 k' +
    4 I with a gated MLP, 6 h + 2 q + 2 k' + 6 I without; 2 (q + k) more where q and k are
    normalised.

    A norm keeps its input, the normalised and the scaled one (3 h; on a GPU the input in float32,
    4 h); attention its q, k, v, its output and that in rows; a gated MLP the gate, its activation,
    the other half and their product. k' is q where packed rows need a mask, as keys and values are
    then repeated for every query head, else k. Korthikanti et al. 2022 (arXiv:2205.05198) count
    34 h bytes in 2-byte elements for GPT's layer with a fused activation, 17 h elements: here 34 h
    for a GPT whose activation is not fused, 21 h with a gated MLP of I = 8/3 h and h = q = k.
    """
    norm = 4 if setting.is_gpu else 3
    keys = shape.queries if setting.config.data.pack else shape.keys
    mlp = 4 if shape.gated else 6
    normed = 2 * (shape.queries + shape.keys) if shape.normed_queries else 0
    return 2 * norm * shape.hidden + 2 * shape.queries + 2 * keys + mlp * shape.neurons + normed


def activations(shape: Shape, rows: int, checkpointing: bool, setting: Setting) -> int:
    """Bytes between forward and backward of `rows` rows: p B T (L a + 3 h + g), where a is
    `layer_elements` and g = 4 h + 2 I the gradients of the layer at work; with checkpointing
    p B T (L h + a + 3 h + g). Packed rows add a mask, (p + 1) B T^2."""
    length = setting.tokens.seq_len
    each = layer_elements(shape, setting)
    kept = shape.layers * shape.hidden + each if checkpointing else shape.layers * each
    at_work = 4 * shape.hidden + 2 * shape.neurons
    mask = (setting.width + 1) * rows * length**2 if setting.config.data.pack else 0
    return setting.width * rows * length * (kept + 3 * shape.hidden + at_work) + mask


def forward_only(shape: Shape, rows: int, setting: Setting) -> int:
    """Bytes of a forward without gradients: a layer's largest arrays at once,
    p B T (4 h + 2 q + 2 k' + 3 I), and the mask."""
    length = setting.tokens.seq_len
    elements = 4 * shape.hidden + 4 * shape.queries + 3 * shape.neurons
    mask = (setting.width + 1) * rows * length**2 if setting.config.data.pack else 0
    return setting.width * rows * length * elements + mask


def gathered(shape: Shape, setting: Setting) -> int:
    """Bytes that ZeRO-3 holds beyond a rank's shard while it computes: p max(min(N, 1e9), largest
    tensor), DeepSpeed's `stage3_max_online_parameters`."""
    return setting.width * max(min(shape.parameters, _MOST_LIVE), shape.largest)


def model_states(
    shape: Shape, zero: ZeroConfig, ranks: int, setting: Setting
) -> tuple[Parts, Parts]:
    """(on the device, on the host) bytes of weights, gradients and AdamW.

    Stage 0 (DDP) trains float32 weights: 4 N + 4 N + 8 N, and with n > 1 buckets of 4 N to reduce
    in; a GPU adds autocast's copy of the weights, 2 N. ZeRO (Rajbhandari et al. 2020,
    arXiv:1910.02054, section 3 and 5): p N weights, p N gradients and 12 N of float32 weights and
    moments, of which stage 1 divides the last by n, stage 2 the last two, stage 3 all; a bucket of
    min(N, 5e8) p, and at stage 3 what is `gathered`. Offload moves the optimiser, and at stage 3
    the weights, to the host.
    """
    n, p = shape.parameters, setting.width
    if zero.stage == 0:
        parts = {"weights": 4 * n, "gradients": 4 * n, "optimiser": 8 * n}
        parts["reduction buckets"] = 4 * n if ranks > 1 else 0
        if setting.is_gpu:
            parts["autocast weights"] = 2 * n
        return parts, {}
    device = {
        "weights": p * n // (ranks if zero.stage == 3 else 1),
        "gradients": p * n // (ranks if zero.stage >= 2 else 1),
        "optimiser": 12 * n // ranks,
        "reduction buckets": p * min(n, _REDUCE_BUCKET),
    }
    host: Parts = {}
    if zero.stage == 3:
        device["gathered weights"] = gathered(shape, setting)
    if zero.offload == "cpu" and setting.is_gpu:
        # The host's optimiser needs the gradients there too, in float32.
        host["optimiser"] = device.pop("optimiser") + 4 * n // ranks
        if zero.stage == 3:
            host["weights"] = device.pop("weights")
    return device, host


def loss_buffers(shape: Shape, rows: int, setting: Setting) -> int:
    """Bytes of the fused head and loss: two chunks of min(256, B T) V in float32, the gradient of
    the head, V h, and of the hidden states, p B T h; on a GPU the head's copy in bfloat16."""
    positions = rows * setting.tokens.seq_len
    chunks = 8 * min(_LOSS_POSITIONS, positions) * setting.tokens.outputs
    weight = (4 + (2 if setting.is_gpu else 0)) * shape.head
    return chunks + weight + setting.width * positions * shape.hidden


def training_memory(shape: Shape, training: TrainingConfig, ranks: int, setting: Setting) -> Memory:
    """A rank that trains: base, model states, activations, loss."""
    rows = min(training.micro_batch_size, -(-training.global_batch_size // ranks))
    device, host = model_states(shape, training.zero, ranks, setting)
    device["activations"] = activations(shape, rows, training.activation_checkpointing, setting)
    device["loss"] = loss_buffers(shape, rows, setting)
    return _placed(device, host, setting, training.zero.stage)


def teacher_memory(setting: Setting) -> Memory | None:
    """The teacher's training; None where it exists already."""
    training = setting.config.teacher.training
    if training is None:
        return None
    ranks = setting.config.teacher.workers.count
    return training_memory(setting.teacher, training, ranks, setting)


def capture_memory(setting: Setting) -> Memory:
    """A rank that captures: the teacher's weights (p N, at stage 3 p N / n and what is gathered), a
    forward, the logits of its targets, p B T V (on a GPU those of `queue_batches` that wait, one
    that is encoded and one that is made), the encoder's chunks, the noise, 8 B T for each draw of
    the codec, and up to four shards of decoded rows on the host."""
    capture, shape, tokens = setting.config.cache.capture, setting.teacher, setting.tokens
    codec = make_codec(setting.config.cache.codec, tokens.outputs)
    positions = capture.micro_batch_size * tokens.seq_len
    is_sharded = capture.zero.stage == 3
    weights = setting.width * shape.parameters // (capture.workers.count if is_sharded else 1)
    logits = setting.width * _targets(capture.micro_batch_size, setting) * shape.vocabulary
    threads = 1 if setting.is_gpu else max(1, int(capture.workers.cpus))
    encode = _ENCODE_ELEMENTS[setting.hardware.kind] * threads * _ENCODE_TENSORS * 4
    device = {
        "weights": weights,
        "gathered weights": gathered(shape, setting) if is_sharded else 0,
        "forward": forward_only(shape, capture.micro_batch_size, setting),
        "logits": logits * (capture.queue_batches + 2 if setting.is_gpu else 1),
        "encoder": encode + 8 * positions * codec.streams,
    }
    shard = setting.config.cache.sequences_per_shard * tokens.seq_len
    host = {"shards": _SHARDS_HELD * shard * (codec.bytes_per_position + _ROW_BYTES_A_POSITION)}
    if capture.zero.offload == "cpu" and setting.is_gpu:
        host["weights"] = device.pop("weights")
    return _placed(device, host, setting, capture.zero.stage)


def distill_memory(setting: Setting) -> Memory:
    """A rank that distils: a training of the student, on the host the cache's decoded chunks (the
    budget, or the whole cache if that is less) and the batches read ahead; with an online teacher
    also its weights, a forward, and dense targets of a chunk."""
    config, tokens = setting.config, setting.tokens
    distill, ranks = config.distill, config.distill.workers.count
    memory = training_memory(setting.student, distill.training, ranks, setting)
    codec = make_codec(config.cache.codec, tokens.outputs)
    each = tokens.seq_len * (codec.bytes_per_position + _ROW_BYTES_A_POSITION)
    rows = -(-distill.training.global_batch_size // ranks)
    more = {
        "cache reader": min(distill.cache_memory_mib << 20, tokens.captured_rows * each),
        "batches ahead": (distill.prefetch_batches + 1) * rows * each,
    }
    device = dict(memory.device)
    if distill.targets == "online":
        device |= _online_teacher(setting)
    if not setting.is_gpu:
        return Memory(device | more, {})
    return Memory(device, memory.host | more)


def _online_teacher(setting: Setting) -> Parts:
    """A teacher beside its student, and its dense targets, three arrays of a chunk."""
    distill, shape = setting.config.distill, setting.teacher
    rows = min(
        distill.training.micro_batch_size,
        -(-distill.training.global_batch_size // distill.workers.count),
    )
    is_sharded = distill.online.zero == 3
    weights = setting.width * shape.parameters // (distill.workers.count if is_sharded else 1)
    held = gathered(shape, setting) if is_sharded else 0
    chunk = 4 * _LOSS_POSITIONS * setting.tokens.outputs
    forward = forward_only(shape, rows, setting)
    return {"online teacher": weights + held + forward, "online targets": 3 * chunk}


def evaluate_memory(setting: Setting) -> Memory:
    """A rank that evaluates: the teacher (whole or p N / n), whole students, a forward, and of the
    targets of a micro-batch in float32 a model's logits, the teacher's, and one array that a metric
    computes with, 3 x 4 B T V."""
    config, shape = setting.config, setting.teacher
    evaluate, ranks = config.evaluate, config.evaluate.workers.count
    arms = 2 if config.distill.baseline else 1
    is_sharded = evaluate.teacher_zero == 3
    logits = 4 * _targets(evaluate.micro_batch_size, setting) * shape.vocabulary
    device = {
        "weights": setting.width * shape.parameters // (ranks if is_sharded else 1),
        "gathered weights": gathered(shape, setting) if is_sharded else 0,
        "students": arms * setting.width * setting.student.parameters,
        "forward": forward_only(shape, evaluate.micro_batch_size, setting),
        "logits": 3 * logits,
    }
    return _placed(device, {}, setting, evaluate.teacher_zero)


def _targets(rows: int, setting: Setting) -> int:
    """Positions that have a target, at most: of a masked language model few, of others any row may
    be all targets."""
    positions = rows * setting.tokens.seq_len
    if setting.config.task != "masked-lm":
        return positions
    return math.ceil(positions * setting.tokens.targets_share)


def memory_of(stage: str, setting: Setting) -> Memory | None:
    """Of a stage by its name; None of one that needs no worker's memory to speak of."""
    parts = {
        "teacher": teacher_memory,
        "cache": capture_memory,
        "distill": distill_memory,
        "evaluate": evaluate_memory,
    }
    skipped = stage == "cache" and setting.config.cache.reuse is not None
    return parts[stage](setting) if stage in parts and not skipped else None


def capacity(stage: str, setting: Setting) -> tuple[float, float]:
    """(device, host) bytes that a rank of the stage may take: the memory but for the reserve; of a
    machine's, an equal part for each of the ranks on it."""
    hardware, workers = setting.hardware, workers_of(stage, setting.config)
    kept = (1 - hardware.reserve) * 2**30
    if setting.is_gpu:
        return hardware.memory_gib * kept, hardware.host_memory_gib * kept
    on_node = min(workers.count, max(1, int(hardware.devices_per_node // workers.cpus)))
    return hardware.memory_gib * kept / on_node, hardware.memory_gib * kept / on_node


def _placed(device: Parts, host: Parts, setting: Setting, zero: int) -> Memory:
    """With the process itself, and DeepSpeed's engine where a `zero` stage asks for it; on a CPU as
    one."""
    measured = setting.measured
    base = measured.base_bytes if measured is not None else _BASE[setting.hardware.kind]
    if setting.is_gpu:
        return Memory(device, {"process": base} | host)
    base += _AT_WORK + (_ENGINE if zero else 0)
    return Memory({"process": base} | device | host, {})
