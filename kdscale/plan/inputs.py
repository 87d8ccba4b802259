"""Inputs of a plan: config, text size, model shapes, hardware, calibration."""

import copy
import math
import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from kdscale.config import RunConfig
from kdscale.config.hardware import Hardware
from kdscale.config.lora import LoraConfig
from kdscale.config.training import TrainingConfig, WorkersConfig
from kdscale.distill.student_init import loaded_config, plan_init
from kdscale.distill.student_tokenizer import student_vocabulary
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import loadable
from kdscale.models.load import build_model, load_config_of
from kdscale.models.lora import add_adapters, linear_maps
from kdscale.models.meta_model import MetaModel
from kdscale.plan.calibration import Calibration
from kdscale.preflight.context import KnownData
from kdscale.preflight.row_counts import Tokens, count_tokens
from kdscale.store import explained
from kdscale.teacher.pretrained import teacher_config

_GATED = re.compile(r"gate_proj|gate_up|\.w3\.")


@dataclass(frozen=True)
class AdapterShape:
    """Sizes of a model's adapters (LoRA), over all layers; counts are of elements."""

    parameters: int  # t
    ranks: int  # sum of r over the adapters
    inputs: int  # sum of the widths of their inputs
    sources: int  # the same, of an input that several of one block share once
    has_dropout: bool
    quantised: int = 0  # matrix elements held in four bits


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal language model; counts are of elements."""

    architecture: str
    parameters: int  # all, tied ones once
    layers: int
    hidden: int  # h
    queries: int  # q: query heads times the size of a head
    keys: int  # k: key heads times the size of a head
    neurons: int  # I: of the MLP; of a mixture of experts, those that a token uses
    vocabulary: int  # V: rows of the embedding, padding included
    matrices: int  # M: matrix elements in the layers that a token is multiplied with
    largest: int  # elements of the largest tensor
    windows: tuple[int | None, ...]  # of each layer, positions that attention sees; None: all
    gated: bool  # whether the MLP has a gate (SwiGLU), two matrices into it instead of one
    normed_queries: bool  # whether queries and keys are normalised
    adapters: AdapterShape | None = None  # which alone are trained, if there are any
    needs_mask: bool = False  # of packed rows, with every kernel of a GPU

    @property
    def trained(self) -> int:
        """Parameters that have a gradient."""
        return self.parameters if self.adapters is None else self.adapters.parameters

    @property
    def head(self) -> int:
        """V h: elements of the map from hidden states to logits."""
        return self.vocabulary * self.hidden

    @property
    def active(self) -> int:
        """M + V h: matrix elements that a token meets; of a mixture of experts, in its own."""
        return self.matrices + self.head

    def attention_flops(self, seq_len: int) -> float:
        """Return forward FLOPs a token of scores and of their product with the values.

        4 q sum over layers of min(T, window).
        """
        seen = sum(seq_len if w is None else min(seq_len, w) for w in self.windows)
        return 4.0 * self.queries * seen

    def forward_flops(self, seq_len: int) -> float:
        """Return FLOPs a token: 2 (M + V h) + 4 q sum min(T, window).

        Two for each matrix element (Kaplan et al. 2020, arXiv:2001.08361, table 1); attention over
        the whole sequence, not half of it, as in PaLM (arXiv:2204.02311, appendix B). The embedding
        only looks up; norms and activations do not count.
        """
        return 2.0 * self.active + self.attention_flops(seq_len)

    def training_flops(self, seq_len: int, checkpointing: bool = False) -> float:
        """Return FLOPs a token of forward and backward: 3 times the forward's.

        With adapters of t parameters 2 x 2 (M + V h) + 3 x the attention's + 6 t: frozen matrices
        need no gradient of their own. With activation checkpointing once more that of the layers.
        """
        forward = self.forward_flops(seq_len)
        again = forward - 2.0 * self.head if checkpointing else 0.0
        if self.adapters is None:
            return 3.0 * forward + again
        more = (8.0 if checkpointing else 6.0) * self.adapters.parameters
        return 2.0 * forward + self.attention_flops(seq_len) + again + more


def adapter_shape(config: Any, lora: LoraConfig) -> AdapterShape:
    """Return the sizes of the adapters of a transformers config's model.

    Raises KdscaleError for target modules that it lacks.
    """
    with torch.device("meta"):
        model = build_model(copy.deepcopy(config), seed=0)
    linear = [model.get_submodule(name).weight.numel() for name in linear_maps(model)]
    add_adapters(model, lora.model_copy(update={"quantise": "none"}), seed=0)
    found = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    widths = {name: int(module.in_features) for name, module in found.items()}
    return AdapterShape(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        ranks=lora.r * len(found),
        inputs=sum(widths.values()),
        sources=sum(
            width for _, width in {(name.rpartition(".")[0], w) for name, w in widths.items()}
        ),
        has_dropout=lora.dropout > 0,
        quantised=0 if lora.quantise == "none" else sum(linear),
    )


def shape_of(config: Any, lora: LoraConfig | None = None) -> Shape:
    """Return the shape of a transformers config's model, built without memory for its weights.

    Of a mixture of experts, their matrices count for the share of them that a token uses. With
    `lora`, only its adapters are trained.
    """
    text = config.get_text_config()
    meta = MetaModel(config)
    layers, hidden = text.num_hidden_layers, text.hidden_size
    heads = text.num_attention_heads

    def option(*names: str) -> Any:
        return next((found for name in names if (found := getattr(text, name, None))), None)

    head_size = option("head_dim") or hidden // heads
    experts = option("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts") or 1
    active = option("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k") or 1
    neurons = option("intermediate_size", "n_inner") or 4 * hidden
    if experts > 1:
        neurons = active * (option("moe_intermediate_size") or neurons)
    matrices = {
        name: prod(shape) * (active / experts if ".experts." in name else 1)
        for name, shape in meta.shapes.items()
        if meta.group_of(name).startswith("layer ") and len(shape) > 1
    }
    window = option("sliding_window")
    kinds = option("layer_types") or ["full_attention"] * layers
    return Shape(
        architecture=config.model_type,
        parameters=sum(map(prod, meta.shapes.values())),
        layers=layers,
        hidden=hidden,
        queries=heads * head_size,
        keys=(option("num_key_value_heads") or heads) * head_size,
        neurons=neurons,
        vocabulary=text.vocab_size,
        matrices=int(sum(matrices.values())),
        largest=max(map(prod, meta.shapes.values())),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        gated=any(_GATED.search(name) for name in matrices),
        normed_queries=any("q_norm" in name for name in meta.shapes),
        adapters=adapter_shape(config, lora) if lora is not None else None,
        needs_mask=meta.needs_mask,
    )


@dataclass(frozen=True)
class PlanInputs:
    """Everything that the figures of a plan follow from."""

    config: RunConfig
    tokens: Tokens
    teacher: Shape
    student: Shape
    hardware: Hardware
    teacher_config: Any  # of transformers
    student_config: Any
    measured: Calibration | None = None
    mfu: float | None = None  # the share of the peak that was given, and is the hardware's here

    @property
    def is_gpu(self) -> bool:
        """True if workers compute on GPUs."""
        return self.hardware.kind == "gpu"

    @property
    def width(self) -> int:
        """Bytes of an element in forward and backward: bfloat16 on a GPU, float32 on a CPU."""
        return 2 if self.is_gpu else 4

    @property
    def students(self) -> int:
        """Models that the distill stage trains: the student and its baseline, if there is one."""
        return 2 if self.config.distill.baseline else 1

    @property
    def copies_base(self) -> bool:
        """True if the student's adapters are published with a copy of the weights beside them."""
        student = self.config.distill.student
        as_loaded = student.load is not None and student.layers is None and student.width is None
        return student.lora is not None and not as_loaded

    @property
    def evaluated_students(self) -> int:
        """Models of the student's size that are evaluated: also one that it loads, as it was."""
        return self.students + (self.config.distill.student.load is not None)

    @property
    def cache_shards(self) -> int:
        """Shards that the capture commits."""
        return math.ceil(self.tokens.captured_rows / self.config.cache.sequences_per_shard)

    @property
    def cache_chunks(self) -> int:
        """Chunks that readers fetch."""
        cache = self.config.cache
        return self.cache_shards * math.ceil(cache.sequences_per_shard / cache.sequences_per_chunk)

    def machines(self, workers: int) -> int:
        """Return the machines of a group of workers, one on each device."""
        return max(1, math.ceil(workers / self.hardware.devices_per_node))

    def link(self, workers: int) -> float:
        """Return bytes a second of a worker to its group: within a machine, else between them."""
        hardware = self.hardware
        inside = workers <= hardware.devices_per_node
        return 1e9 * (hardware.link_gb_s if inside else hardware.network_gb_s)

    def has_mask(self, shape: Shape) -> bool:
        """Return whether packed rows have a mask [T, T] in a model of the run."""
        config = self.config
        if not config.packs:
            return False
        source = config.teacher if shape is self.teacher else config.distill.student
        by_blocks = not shape.needs_mask and source.attention != "sdpa"
        return not (self.is_gpu and by_blocks)

    @property
    def in_student_tokens(self) -> "PlanInputs":
        """The same run with sequences and ids of a student that has its own tokenizer."""
        if not self.config.aligns:
            return self
        length, ids = self.config.student_seq_len, self.student.vocabulary
        return replace(self, tokens=replace(self.tokens, seq_len=length, outputs=ids))

    def with_config(self, config: RunConfig) -> "PlanInputs":
        """Return the same run with other workers, micro-batches or parallelism."""
        return replace(self, config=config)

    def with_hardware(self, hardware: Hardware) -> "PlanInputs":
        """Return the same run on other hardware."""
        return replace(self, hardware=hardware)

    def with_mfu(self, mfu: float) -> "PlanInputs":
        """Return the same run where models reach `mfu` of a device's peak."""
        shares = {"forward_utilisation": mfu, "training_utilisation": mfu}
        hardware = self.hardware.model_copy(update=shares)
        return replace(self, hardware=hardware, measured=None, mfu=mfu)

    def with_measured(self, measured: Calibration | None) -> "PlanInputs":
        """Return the same run with other measurements, or without any."""
        return replace(self, measured=measured)


@explained()
def read_inputs(
    config: RunConfig,
    hardware: Hardware,
    *,
    tokens: float | None = None,
    teacher_shape: str | None = None,
) -> PlanInputs:
    """Read the facts about a run without starting it.

    `tokens` and `teacher_shape` (a folder with config.json) stand in for a corpus and a teacher
    that are not at hand. Raises KdscaleError where one is needed, or where a model cannot be built.
    """
    if config.teacher.is_absent and teacher_shape is None:
        raise KdscaleError(
            "The run has no teacher (cache.reuse stands for it), and a plan asks for its shape.",
            "Plan with a config.json of its shape: --teacher FOLDER.",
        )
    trained = config.teacher.model is not None
    teacher = None if trained else _existing_teacher(config, teacher_shape)
    vocab_size = config.data.tokenizer.vocab_size
    if teacher is not None:
        vocab_size = teacher.get_text_config().vocab_size
    found = count_tokens(config, vocab_size, tokens)
    labels = config.data.labels
    classes: tuple[str, ...] = ()
    if labels is not None:
        classes = labels.classes or tuple(map(str, range(found.outputs)))
    data = KnownData(found.vocab_size, classes)
    teacher = teacher_config(config, data, teacher)
    if config.aligns:
        data = KnownData(student_vocabulary(config.distill.student), classes)
    student = _student_config(config, data, teacher)
    return PlanInputs(
        config=config,
        tokens=found,
        teacher=shape_of(teacher),
        student=shape_of(student, config.distill.student.lora),
        hardware=hardware,
        teacher_config=teacher,
        student_config=student,
    )


def _student_config(config: RunConfig, data: KnownData, teacher: Any) -> Any:
    """Return the transformers config of the student, also of one that loads a model."""
    student = config.distill.student
    if student.load is None:
        return plan_init(config, data, teacher).config
    try:
        shape = load_config_of(loadable(student.load, weights=False), student.revision)
    except KdscaleError as error:
        stand_in = "--set distill.student.load=FOLDER"
        raise KdscaleError(
            error.problem, f"{error.fix} Or plan with a config.json of its shape: {stand_in}."
        ) from error
    # The tokenizer's ids are not known here: the teacher's embedding may be padded further.
    known = replace(data, vocab_size=min(data.vocab_size, shape.get_text_config().vocab_size))
    return plan_init(config, known, loaded_config(config, known, shape)).config


def workers_of(stage: str, config: RunConfig) -> WorkersConfig:
    """Return the worker group of a stage."""
    groups = {
        "teacher": config.teacher.workers,
        "cache": config.cache.capture.workers,
        "distill": config.distill.workers,
        "evaluate": config.evaluate.workers,
    }
    return groups[stage]


def rank_rows(training: TrainingConfig, ranks: int) -> int:
    """Return the sequences of a step on the rank that has most."""
    return -(-training.global_batch_size // ranks)


def _existing_teacher(config: RunConfig, stand_in: str | None) -> Any:
    """Return the transformers config of a teacher that exists."""
    where = stand_in or config.teacher.load
    assert where is not None
    if stand_in and "://" not in where and Path(where).is_file():
        where = str(Path(where).parent)
    try:
        where = loadable(where, weights=False)
        return load_config_of(where, None if stand_in else config.teacher.revision)
    except KdscaleError as error:
        raise KdscaleError(
            error.problem, f"{error.fix} Or plan with a config.json of its shape: --teacher FOLDER."
        ) from error
