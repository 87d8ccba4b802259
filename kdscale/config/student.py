"""Config of the student: its shape, its losses, its training, its curriculum."""

from typing import Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config
from kdscale.config.curriculum import CurriculumConfig, Schedule
from kdscale.config.teacher import ModelConfig
from kdscale.config.training import TrainingConfig, WorkersConfig


class StudentConfig(Config):
    """Either `model` (a random start) or `teacher_layers` (a start from the teacher)."""

    model: ModelConfig | None = None
    """Architecture of a student that starts at random."""

    teacher_layers: list[int] | None = None
    """Layers of the teacher that the student starts from, in this order; embeddings, norms and head
    are copied too."""

    @model_validator(mode="after")
    def _one_start(self) -> "StudentConfig":
        if (self.model is None) == (self.teacher_layers is None):
            raise ValueError("give either `model` or `teacher_layers`")
        if self.teacher_layers is not None and not self.teacher_layers:
            raise ValueError("`teacher_layers` is empty")
        return self


class LossConfig(Config):
    """Forward KL to the cached targets, mixed with cross-entropy on the labels."""

    kd_weight: Schedule = Schedule(kind="constant", start=1.0)
    """Weight w of the distillation loss at a step; cross-entropy gets 1 - w."""

    @model_validator(mode="after")
    def _weights_in_range(self) -> "LossConfig":
        for value in (self.kd_weight.start, self.kd_weight.end):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"kd_weight {value} is outside 0..1")
        return self


class DistillConfig(Config):
    """The distill stage: the student from the cache, then the control from the labels alone."""

    student: StudentConfig
    loss: LossConfig = LossConfig()
    training: TrainingConfig
    curriculum: CurriculumConfig = CurriculumConfig()
    workers: WorkersConfig = WorkersConfig()

    control: bool = True
    """Train the control too: the same student, seed, order and steps on the labels alone."""

    cache_memory_mib: int = Field(default=512, gt=0)
    """Memory for decoded cache blocks on a worker."""

    cache_disk_gib: float = Field(default=32.0, ge=0)
    """Disk for decoded cache blocks on each machine, shared by its workers and kept for the next
    run; the least recently used go first. 0 reads every block from the store."""

    cache_folder: str | None = None
    """Where they are kept: best a local NVMe disk. By default in the folder for temporary files."""

    prefetch_batches: int = Field(default=4, ge=1)
    """Batches read ahead of the training step."""


class EvaluateConfig(Config):
    """The evaluate stage."""

    workers: WorkersConfig = WorkersConfig()

    micro_batch_rows: int = Field(default=8, gt=0)
    """Rows of one forward on one rank."""

    teacher_zero: Literal[0, 3] = 3
    """ZeRO stage of the teacher here; students are whole on each worker."""
