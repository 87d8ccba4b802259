"""Peak memory of a rank, part by part.

p is the width of an element in the computing type (2 bytes on a GPU, 4 on a CPU), N a model's
parameters, n the ranks, B the sequences of a micro-batch, T their length, V the vocabulary. On a
CPU all is in the host's memory; on a GPU `host` is beside it. Small short-lived buffers (norms,
learning rates, the input's own tokens) are left out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from kdscale.cache.codecs import make_codec
from kdscale.config.training import TrainingConfig, ZeroConfig
from kdscale.losses.fused import chunk_positions
from kdscale.plan.groups import teacher_ranks
from kdscale.plan.inputs import PlanInputs, Shape, rank_rows, workers_of

Parts = dict[str, int]

# DeepSpeed's defaults, elements: gradients reduced at a time; parameters kept gathered at stage 3.
_REDUCE_BUCKET = 500_000_000
_MOST_LIVE = 1_000_000_000
# flex_attention's blocks of positions, and bytes for each pair of them: two lists by queries and
# two by keys, int32.
_BLOCK, _BLOCK_BYTES = 128, 16
# Bytes of a process without a model: Python, torch, Ray, transformers; CUDA's libraries.
_BASE = {"cpu": 600 << 20, "gpu": 3 << 30}
# Bytes that a process on a CPU adds once it works: maps of files, the allocator's reserve,
# libraries that load at their first use; and DeepSpeed's engine. Measured by benchmarks/plan.py.
_AT_WORK, _ENGINE = 90 << 20, 100 << 20
# Of a weight in NF4: four bits, a scale of 8 bits for 64, and a scale in float32 for 256 of these.
_NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
# Elements of the logits that an encoder has at a time, see teacher/states.py.
_LOGITS = {"cpu": 1 << 25, "gpu": 1 << 28}
# Elements of an encoder's chunk, see cache/codecs/chunked.py, and its working tensors of 4 bytes.
_ENCODE_ELEMENTS = {"cpu": 1 << 20, "gpu": 1 << 28}
_ENCODE_TENSORS = 4
# Cache shards that an encoder holds at most, see teacher/encoder.py.
_SHARDS_HELD = 4
# Bytes of a position beside its payload: ids and segments in int32, the mask.
_POSITION = 9


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank by part. On a CPU `device` is the process and `host` is empty."""

    device: Parts
    host: Parts

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return sum(self.device.values())


def layer_elements(shape: Shape, inputs: PlanInputs) -> int:
    """Return the elements a token that a layer keeps for the backward pass.

    6 h (8 h on a GPU) + 2 q + 2 k' + 4 I with a gated MLP, 6 h + 2 q + 2 k' + 6 I without;
    2 (q + k) more where q and k are normalised.

    A norm keeps its input, the normalised and the scaled one (3 h; on a GPU the input in float32,
    4 h); attention its q, k, v, its output and that in rows; a gated MLP the gate, its activation,
    the other half and their product. k' is q where packed sequences need a mask, as keys and values
    are then repeated for every query head, else k. Korthikanti et al. 2022 (arXiv:2205.05198) count
    34 h bytes in 2-byte elements for GPT's layer with a fused activation, 17 h elements: here 34 h
    for a GPT whose activation is not fused, 21 h with a gated MLP of I = 8/3 h and h = q = k.
    Beside adapters, frozen norms do not keep what is normalised, 2 h and q + k.
    """
    norm = 4 if inputs.is_gpu else 3
    if shape.adapters is not None:
        norm -= 1
    keys = shape.queries if inputs.has_mask(shape) else shape.keys
    mlp = 4 if shape.gated else 6
    kept_of_norm = 2 if shape.adapters is None else 1
    normed = kept_of_norm * (shape.queries + shape.keys) if shape.normed_queries else 0
    full = 2 * norm * shape.hidden + 2 * shape.queries + 2 * keys + mlp * shape.neurons + normed
    return full + _of_adapters(shape, inputs)


def _of_adapters(shape: Shape, inputs: PlanInputs) -> int:
    """Return the elements a token and layer that adapters keep, or that frozen maps do not.

    The r products of each A, and of the inputs of linear maps, 2 h + q + I, those that an adapter
    has too; with dropout each adapter's own input and its mask, a byte an element on a GPU and p on
    a CPU, in place of the shared input.
    """
    adapters = shape.adapters
    if adapters is None:
        return 0
    inputs_of_maps = 2 * shape.hidden + shape.queries + shape.neurons
    found = adapters.ranks / shape.layers
    found -= max(0.0, inputs_of_maps - adapters.sources / shape.layers)
    if adapters.has_dropout:
        mask = 1 / inputs.width if inputs.is_gpu else 1
        found += ((1 + mask) * adapters.inputs - adapters.sources) / shape.layers
    return round(found)


def activations(shape: Shape, rows: int, checkpointing: bool, inputs: PlanInputs) -> int:
    """Return the bytes between forward and backward of `rows` sequences: p B T (L a + 3 h + g).

    a is `layer_elements` and g = 4 h + 2 I the gradients of the current layer; with checkpointing
    p B T (L h + a + 3 h + g). Packed sequences add a mask.
    """
    each = layer_elements(shape, inputs)
    kept = shape.layers * shape.hidden + each if checkpointing else shape.layers * each
    gradients = 4 * shape.hidden + 2 * shape.neurons
    elements = kept + 3 * shape.hidden + gradients
    return inputs.width * rows * inputs.tokens.seq_len * elements + _mask(shape, rows, inputs)


def forward_only(shape: Shape, rows: int, inputs: PlanInputs) -> int:
    """Return the bytes of a forward without gradients, a layer's largest arrays at once.

    p B T (4 h + 2 q + 2 k' + 3 I), and the mask.
    """
    elements = 4 * shape.hidden + 4 * shape.queries + 3 * shape.neurons
    return inputs.width * rows * inputs.tokens.seq_len * elements + _mask(shape, rows, inputs)


def _mask(shape: Shape, rows: int, inputs: PlanInputs) -> int:
    """Return the bytes of the mask of packed rows: (p + 1) B T^2, or 16 B (T / 128)^2 of blocks."""
    length = inputs.tokens.seq_len
    if inputs.has_mask(shape):
        return (inputs.width + 1) * rows * length**2
    packs_on_gpu = inputs.is_gpu and inputs.config.packs
    return _BLOCK_BYTES * rows * math.ceil(length / _BLOCK) ** 2 if packs_on_gpu else 0


def gathered(shape: Shape, inputs: PlanInputs, layers: int = 0) -> int:
    """Return the bytes that ZeRO-3 holds beyond a rank's shard while it computes.

    p max(min(N, l), largest tensor) with l = 1e9, DeepSpeed's `stage3_max_live_parameters`, or the
    elements of so many `layers` if those are more.
    """
    live = max(_MOST_LIVE, layers * (shape.parameters - shape.head) // shape.layers)
    return inputs.width * max(min(shape.parameters, live), shape.largest)


def model_states(
    shape: Shape, zero: ZeroConfig, ranks: int, inputs: PlanInputs
) -> tuple[Parts, Parts]:
    """Return (on the device, on the host) bytes of weights, gradients and AdamW.

    Stage 0 (DDP) trains float32 weights: 4 N + 4 N + 8 N, the gradients being views of the buckets
    that they are reduced in; a GPU adds autocast's copy of the weights, 2 N. ZeRO (Rajbhandari et
    al. 2020, arXiv:1910.02054, section 3 and 5): p N weights, p N gradients (4 N from stage 2 on)
    and 12 N of float32 weights and moments, of which stage 1 divides the last by n, stage 2 the
    last two, stage 3 all; a bucket of min(N, 5e8) p, from stage 2 on its float32 copy on a GPU, and
    at stage 3 the `gathered` weights. Offload moves the optimiser, and at stage
    3 the weights, to the host. With adapters of t parameters (LoRA), weights are those of N + t,
    and all else but the copy of autocast is t's; of the maps in four bits (NF4, arXiv:2305.14314),
    a weight takes 4 + 8 / 64 + 32 / (64 x 256) bits.
    """
    p, trained = inputs.width, shape.trained
    adapters = shape.adapters
    n = shape.parameters + (0 if adapters is None else trained)
    quantised = 0 if adapters is None else adapters.quantised
    if zero.stage == 0:
        weights = 4 * (n - quantised) + round(_NF4_BYTES * quantised)
        parts = {"weights": weights, "gradients": 4 * trained, "optimiser": 8 * trained}
        if inputs.is_gpu:
            parts["autocast weights"] = 2 * (n - quantised)
        return parts, {}
    bucket = p + 4 if zero.stage >= 2 and inputs.is_gpu else p
    device = {
        "weights": p * n // (ranks if zero.stage == 3 else 1),
        "gradients": 4 * trained // ranks if zero.stage >= 2 else p * trained,
        "optimiser": 12 * trained // ranks,
        "reduction buckets": bucket * min(trained, _REDUCE_BUCKET),
    }
    host: Parts = {}
    if zero.stage == 3:
        device["gathered weights"] = gathered(shape, inputs)
    if zero.offload == "cpu" and inputs.is_gpu:
        # The host's optimiser needs the gradients there too, in float32.
        host["optimiser"] = device.pop("optimiser") + 4 * trained // ranks
        if zero.stage == 3:
            host["weights"] = device.pop("weights")
    return device, host


def _weights(shape: Shape, ranks: int, is_sharded: bool, inputs: PlanInputs) -> Parts:
    """Return the weights of a model that only runs: p N, or p N / n and the `gathered` ones.

    n are the `ranks` that hold it together. Those of three layers, see models/sharded.py.
    """
    return {
        "weights": inputs.width * shape.parameters // (ranks if is_sharded else 1),
        "gathered weights": gathered(shape, inputs, layers=3) if is_sharded else 0,
    }


def loss_buffers(shape: Shape, rows: int, inputs: PlanInputs) -> int:
    """Return the bytes of the fused loss.

    Two arrays of a chunk's logits in float32, 8 min(C, B T) V for C positions a chunk, on a GPU one
    in bfloat16 beside them; the gradient of the head, 4 V h (a head beside adapters has none), and
    of the hidden states, p B T h; on a GPU the head's copy in bfloat16, 2 V h.
    """
    positions = rows * inputs.tokens.seq_len
    chunk = min(_chunk(inputs), positions)
    chunks = (8 + (2 if inputs.is_gpu else 0)) * chunk * inputs.tokens.outputs
    gradient = 4 if shape.adapters is None else 0
    weight = (gradient + (2 if inputs.is_gpu else 0)) * shape.head
    return chunks + weight + inputs.width * positions * shape.hidden


def _chunk(inputs: PlanInputs) -> int:
    """Return the most positions of a chunk of the fused loss."""
    return chunk_positions("cuda" if inputs.is_gpu else "cpu", inputs.tokens.outputs)


def training_memory(
    shape: Shape, training: TrainingConfig, ranks: int, inputs: PlanInputs
) -> Memory:
    """Return the memory of a rank that trains: base, model states, activations, loss."""
    rows = min(training.micro_batch_size, rank_rows(training, ranks))
    device, host = model_states(shape, training.zero, ranks, inputs)
    device["activations"] = activations(shape, rows, training.activation_checkpointing, inputs)
    device["loss"] = loss_buffers(shape, rows, inputs)
    return _placed(device, host, inputs, training.zero.stage)


def teacher_memory(inputs: PlanInputs) -> Memory | None:
    """Return the memory of the teacher's training; None where it exists already."""
    training = inputs.config.teacher.training
    if training is None:
        return None
    return training_memory(inputs.teacher, training, inputs.config.teacher.workers.count, inputs)


def capture_memory(inputs: PlanInputs) -> Memory:
    """Return the memory of a rank that captures.

    The teacher's weights, a forward, the hidden states of its targets, p B T h (on a GPU those of
    `queue_batches` that wait, one that is encoded and one that is made), the head whole where the
    teacher is sharded, p V h, a chunk's logits in float32 (on a GPU in bfloat16 too), the encoder's
    chunks, the noise, 8 B T for each draw of the codec, and up to four decoded cache shards on the
    host.
    """
    config, shape, tokens = inputs.config, inputs.teacher, inputs.tokens
    capture = config.cache.capture
    codec = make_codec(config.cache.codec, tokens.outputs)
    positions = capture.micro_batch_size * tokens.seq_len
    targets, is_sharded = _targets(capture.micro_batch_size, inputs), capture.zero.stage == 3
    logits = min(_LOGITS[inputs.hardware.kind], targets * tokens.outputs)
    threads = 1 if inputs.is_gpu else max(1, int(capture.workers.cpus))
    chunk = min(_ENCODE_ELEMENTS[inputs.hardware.kind] * threads, logits)
    encode = chunk * _ENCODE_TENSORS * 4
    device = {
        **_weights(
            shape,
            teacher_ranks(capture.teacher_group, capture.workers.count, inputs),
            is_sharded,
            inputs,
        ),
        "forward": forward_only(shape, capture.micro_batch_size, inputs),
        "head": inputs.width * shape.head if is_sharded else 0,
        "hidden states": (capture.queue_batches + 2 if inputs.is_gpu else 1)
        * (inputs.width * targets * shape.hidden),
        "logits": logits * (4 + 2 if inputs.is_gpu else 4),
        "encoder": encode + 8 * positions * codec.streams,
    }
    shard = config.cache.sequences_per_shard * tokens.seq_len
    host = {"shards": _SHARDS_HELD * shard * (codec.bytes_per_position + _POSITION)}
    if capture.zero.offload == "cpu" and inputs.is_gpu:
        host["weights"] = device.pop("weights")
    return _placed(device, host, inputs, capture.zero.stage)


def distill_memory(inputs: PlanInputs) -> Memory:
    """Return the memory of a rank that distils.

    A training of the student, on the host the cache's decoded chunks (the budget, or the whole
    cache if that is less) and the batches read ahead; with an online teacher also its weights, a
    forward, and dense targets of a chunk, three arrays.
    """
    config, tokens, shape = inputs.config, inputs.tokens, inputs.teacher
    distill, ranks = config.distill, config.distill.workers.count
    own = inputs.in_student_tokens
    memory = training_memory(inputs.student, distill.training, ranks, own)
    codec = make_codec(config.cache.codec, tokens.outputs)
    each = tokens.seq_len * (codec.bytes_per_position + _POSITION)
    rows = rank_rows(distill.training, ranks)
    reader = {
        "cache reader": min(distill.cache_memory_mib << 20, tokens.captured_rows * each),
        "batches ahead": (distill.prefetch_batches + 1) * rows * each,
    }
    device = dict(memory.device)
    if distill.targets == "online":
        is_sharded = distill.online.teacher_sharding == "zero3"
        group = teacher_ranks(distill.online.teacher_group, ranks, inputs)
        weights = _weights(shape, group, is_sharded, inputs)
        forward = forward_only(shape, min(distill.training.micro_batch_size, rows), inputs)
        device["online teacher"] = sum(weights.values()) + forward
        device["online targets"] = 3 * 4 * _chunk(inputs) * tokens.outputs
    if not inputs.is_gpu:
        return Memory(device | reader, {})
    return Memory(device, memory.host | reader)


def evaluate_memory(inputs: PlanInputs) -> Memory:
    """Return the memory of a rank that evaluates.

    The teacher (whole or p N / n), whole students, a forward, and of the targets of a micro-batch
    in float32 a model's logits, the teacher's, and one array of a metric, 3 x 4 B T V.
    """
    evaluate, shape = inputs.config.evaluate, inputs.teacher
    is_sharded = evaluate.teacher_sharding == "zero3"
    device = {
        **_weights(shape, evaluate.workers.count, is_sharded, inputs),
        "students": inputs.evaluated_students * inputs.width * inputs.student.parameters,
        "forward": forward_only(shape, evaluate.micro_batch_size, inputs),
        "logits": 3 * 4 * _targets(evaluate.micro_batch_size, inputs) * shape.vocabulary,
    }
    return _placed(device, {}, inputs, 3 if is_sharded else 0)


def _targets(rows: int, inputs: PlanInputs) -> int:
    """Return the most positions with a target: few of a masked language model, else all."""
    positions = rows * inputs.tokens.seq_len
    if inputs.config.task != "masked-lm":
        return positions
    return math.ceil(positions * inputs.tokens.targets_share)


def memory_of(stage: str, inputs: PlanInputs) -> Memory | None:
    """Return the memory of a stage's rank; None where it starts no workers."""
    if stage == "cache" and inputs.config.cache.reuse is not None:
        return None
    stages: dict[str, Callable[[PlanInputs], Memory | None]] = {
        "teacher": teacher_memory,
        "cache": capture_memory,
        "distill": distill_memory,
        "evaluate": evaluate_memory,
    }
    return stages[stage](inputs) if stage in stages else None


def capacity(stage: str, inputs: PlanInputs) -> tuple[float, float]:
    """Return (device, host) bytes that a rank of the stage may take.

    The memory without the reserve; of a machine's, an equal part for each of the ranks on it.
    """
    hardware, workers = inputs.hardware, workers_of(stage, inputs.config)
    kept = (1 - hardware.reserve) * 2**30
    if inputs.is_gpu:
        return hardware.memory_gib * kept, hardware.host_memory_gib * kept
    on_node = min(workers.count, max(1, int(hardware.devices_per_node // workers.cpus)))
    return hardware.memory_gib * kept / on_node, hardware.memory_gib * kept / on_node


def _placed(device: Parts, host: Parts, inputs: PlanInputs, zero: int) -> Memory:
    """Add the process, and DeepSpeed's engine for a `zero` stage; merge both on a CPU."""
    measured = inputs.measured
    base = measured.base_bytes if measured is not None else _BASE[inputs.hardware.kind]
    if inputs.is_gpu:
        return Memory(device, {"process": base} | host)
    base += _AT_WORK + (_ENGINE if zero else 0)
    return Memory({"process": base} | device | host, {})
