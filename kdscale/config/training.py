"""Config of trainings, of teacher and student: workers, optimiser, learning rate, parallelism."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config
from kdscale.config.operational import Operational

Decay = Annotated[float, Field(ge=0, lt=1)]

TeacherSharding = Literal["none", "zero3"]
"""Placement on the workers of a teacher that is not trained: `none`, whole on each of them, or
`zero3`, sharded over them (DeepSpeed ZeRO-3), so that none holds all of it."""

TeacherGroup = Literal["auto", "node", "all"] | Annotated[int, Field(ge=2)]
"""Workers that hold a sharded teacher together: those of a node, all of them, or so many in a row.
`auto`: those of a node, if they are GPUs and a rank's share of the weights takes at most half of a
GPU's memory, else all."""

AttentionChoice = Literal["auto", "flash_attention_2", "flex_attention", "sdpa"]
"""Kernel of a model's attention."""


class WorkersConfig(Config):
    """The Ray Train workers of a stage."""

    count: int = Field(default=2, ge=1)
    """Number of workers (ranks)."""

    min_count: int | None = Field(default=None, ge=1)
    """Start with as few workers as this if the cluster has no room for `count`, continue with as
    few if some are lost, and grow up to `count` when there is room. Exactly `count` if not
    given."""

    resize_seconds: float = Field(default=60, gt=0)
    """Seconds between two looks at whether there is room for more workers; with `min_count`."""

    cpus: float = Field(default=1, gt=0)
    """CPUs of a worker; also its number of threads on a CPU."""

    gpus: float = Field(default=0, ge=0, le=1)
    """GPUs of a worker: 0 runs on CPU with gloo in float32, 1 on a GPU with NCCL in bfloat16. A
    part of one, as 0.5, leaves the rest of the GPU to others, and takes a `count` of 1."""

    max_failures: int = Field(default=3, ge=-1)
    """Restarts of the worker group after a worker died or hung, or its node was
    lost; -1: any number of times. An error that a restart cannot fix ends the stage at once."""

    max_preemptions: int = Field(default=-1, ge=-1)
    """Restarts of the worker group after a node was taken away with a notice, as
    spot machines are; -1: any number of times. Counted apart from `max_failures`."""

    hang_seconds: float = Field(default=900, gt=0)
    """A worker without a heartbeat or progress for longer than this counts as hung, and the group
    is started again. Longer than any step, upload or loading of a model takes."""

    collective_timeout_seconds: int = Field(default=1800, gt=0)
    """A collective that waits longer than this fails instead of hanging."""

    @model_validator(mode="after")
    def _min_is_least(self) -> "WorkersConfig":
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"min_count {self.min_count} is more than count {self.count}")
        return self

    @model_validator(mode="after")
    def _gpus_are_whole(self) -> "WorkersConfig":
        if 0 < self.gpus < 1 and self.count > 1:
            raise ValueError(
                f"{self.count} workers of {self.gpus:g} GPUs would share a GPU, which NCCL "
                "refuses: give gpus 1, or count 1"
            )
        return self

    @property
    def least(self) -> int:
        """The smallest group that may work."""
        return self.count if self.min_count is None else self.min_count


def check_teacher_group(
    group: TeacherGroup, sharding: TeacherSharding, workers: WorkersConfig
) -> None:
    """Raise ValueError where the workers do not make groups of that size."""
    if group == "auto":
        return
    if sharding == "none":
        raise ValueError(
            f"teacher_group {group} needs teacher_sharding zero3: without it every worker holds "
            "all of the teacher"
        )
    if isinstance(group, int) and workers.count % group:
        raise ValueError(
            f"teacher_group {group} does not divide {workers.count} workers: give a divisor of "
            "workers.count, or `auto`, or `all`"
        )


class ZeroConfig(Config):
    """DeepSpeed ZeRO."""

    stage: Literal[0, 1, 2, 3] = 0
    """1: optimiser states sharded, 2: gradients too, 3: parameters too. 0: plain data parallel
    (DDP). Gradients add up in float32 over ranks and micro-batches, at stage 1 on GPUs in
    bfloat16."""

    offload: Literal["none", "cpu"] = "none"
    """Place of sharded optimiser states (and, at stage 3, parameters) between uses."""

    @classmethod
    def for_teacher(
        cls, sharding: TeacherSharding, offload: Literal["none", "cpu"] = "none"
    ) -> "ZeroConfig":
        """Return the ZeRO settings of a teacher that is not trained."""
        return cls(stage=3 if sharding == "zero3" else 0, offload=offload)

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> "ZeroConfig":
        if self.offload != "none" and self.stage == 0:
            raise ValueError("offload needs zero.stage 1, 2 or 3")
        return self


class OptimiserConfig(Config):
    """AdamW and its learning-rate schedule."""

    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """Peak learning rate: about what AdamW moves every weight by in a step."""

    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """The learning rate after its warm-up: `wsd` stays at the peak and falls over the
    last `decay_share` of the steps."""

    final_learning_rate_share: float = Field(default=0.1, ge=0, le=1)
    """Every schedule but `constant` ends at this share of the peak."""

    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly."""

    decay_share: float = Field(default=0.1, gt=0, le=1)
    """Share of the steps over which `wsd` falls."""

    decay_shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    """Shape of the fall of `wsd`."""

    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's moment decays, each from 0 to below 1."""

    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay, on matrices only."""

    clip: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""

    @model_validator(mode="after")
    def _decay_keeps_signs(self) -> "OptimiserConfig":
        if self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"learning_rate {self.learning_rate:g} times weight_decay {self.weight_decay:g} is "
                "1 or more: a step would take all of a weight away"
            )
        return self

    @model_validator(mode="after")
    def _warmup_before_decay(self) -> "OptimiserConfig":
        if self.schedule == "wsd" and self.warmup_share + self.decay_share > 1:
            raise ValueError(
                f"warmup_share {self.warmup_share} and decay_share {self.decay_share} are more "
                "than the whole run"
            )
        return self


class EarlyStoppingConfig(Config):
    """Early end of a training that no longer improves."""

    patience: int = Field(gt=0)
    """Validations in a row without a gain after which it ends."""

    min_delta: float = Field(default=0.0, ge=0)
    """The validation loss, nats a token, has to fall by this for a gain. Smaller gains add up."""


class TrainingConfig(Config):
    """One training run."""

    steps: int = Field(gt=0)
    """Optimiser steps."""

    global_batch_size: int = Field(gt=0)
    """Sequences in a global batch, over all ranks and micro-batches."""

    micro_batch_size: Operational[int] = Field(default=8, gt=0)
    """Sequences of one forward and backward on one rank; gradients accumulate over them."""

    optimiser: OptimiserConfig = OptimiserConfig()

    zero: Operational[ZeroConfig] = ZeroConfig()

    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Sets every dropout that the architecture has, against overfitting. As the architecture or the
    teacher has it, if not given."""

    activation_checkpointing: Operational[bool] = False
    """Compute the activations of each layer again in the backward pass instead of keeping them:
    less memory for about a third more time."""

    compile: Operational[bool] = False
    """Compile the model's layers (torch.compile) before the first step, which takes a minute or
    more; at zero.stage 0, 1 or 2. Needs a C++ compiler on CPUs, Triton and a C compiler on GPUs.
    Results differ by rounding, and dropout drops other units."""

    early_stopping: EarlyStoppingConfig | None = None
    """{patience: n, min_delta: x} ends the training after n validations in a row without a gain of
    x nats a token."""

    keep: Literal["best", "last"] = "last"
    """The model to publish: the one with the lowest validation loss, or that of the last step."""

    log_every: Operational[int] = Field(default=10, gt=0)
    """Steps between two logged lines."""

    validate_every: int = Field(default=100, gt=0)
    """Steps between two validations; the last step always has one."""

    validation_sequences: int = Field(default=64, gt=0)
    """Sequences of a validation."""

    checkpoint_every: Operational[int] = Field(default=100, gt=0)
    """Steps between two checkpoints. The last two, and of `keep: best` the best one, are kept until
    the model is published."""

    @model_validator(mode="after")
    def _compiles_whole_layers(self) -> "TrainingConfig":
        if self.compile and self.zero.stage == 3:
            raise ValueError(
                "compile needs zero.stage 0, 1 or 2: at stage 3 weights are gathered around every "
                "module of a layer, outside of what can be compiled"
            )
        return self
