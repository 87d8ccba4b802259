"""What all figures of a plan are worked out from: config, text, models, hardware, measurements."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdscale.config import RunConfig
from kdscale.config.hardware import Hardware
from kdscale.config.training import WorkersConfig
from kdscale.distill.student_init import plan_init
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import loadable
from kdscale.models.load import load_config_of
from kdscale.plan.calibration import Calibration
from kdscale.plan.shape import Shape, shape_of
from kdscale.preflight.tokens import Tokens, count_tokens
from kdscale.preflight.view import KnownData
from kdscale.store import explained
from kdscale.teacher.pretrained import teacher_config


@dataclass(frozen=True)
class Setting:
    """A run before it starts."""

    config: RunConfig
    tokens: Tokens
    teacher: Shape
    student: Shape
    hardware: Hardware
    teacher_config: Any  # of transformers
    student_config: Any
    measured: Calibration | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether workers compute on GPUs."""
        return self.hardware.kind == "gpu"

    @property
    def width(self) -> int:
        """Bytes of an element in forward and backward: bfloat16 on a GPU, float32 on a CPU."""
        return 2 if self.is_gpu else 4

    def link(self, workers: int) -> float:
        """Bytes a second of a worker to its group: within a machine, else between machines."""
        hardware = self.hardware
        inside = workers <= hardware.devices_per_node
        return 1e9 * (hardware.link_gb_s if inside else hardware.network_gb_s)

    def with_config(self, config: RunConfig) -> "Setting":
        """The same run, its workers, micro-batches or parallelism changed."""
        return replace(self, config=config)

    def with_measured(self, measured: Calibration | None) -> "Setting":
        """The same run with other measurements, or without any."""
        return replace(self, measured=measured)


@explained()
def make_setting(
    config: RunConfig,
    hardware: Hardware,
    *,
    tokens: float | None = None,
    teacher_shape: str | None = None,
) -> Setting:
    """Read what there is to know of a run without starting it.

    `tokens` and `teacher_shape` (a folder with config.json) stand in for a corpus and a teacher
    that are not at hand. Raises KdscaleError where one is needed, or where a model cannot be built.
    """
    teacher = None if config.teacher.load is None else _existing(config, teacher_shape)
    vocab_size = config.data.tokenizer.vocab_size
    if teacher is not None:
        vocab_size = teacher.get_text_config().vocab_size
    found = count_tokens(config, vocab_size, tokens)
    data = KnownData(found.vocab_size, _classes(config, found))
    teacher = teacher_config(config, data, teacher)
    student = plan_init(config, data, teacher).config
    return Setting(
        config=config,
        tokens=found,
        teacher=shape_of(teacher),
        student=shape_of(student),
        hardware=hardware,
        teacher_config=teacher,
        student_config=student,
    )


def workers_of(stage: str, config: RunConfig) -> WorkersConfig:
    """The worker group of a stage."""
    groups = {
        "teacher": config.teacher.workers,
        "cache": config.cache.capture.workers,
        "distill": config.distill.workers,
        "evaluate": config.evaluate.workers,
    }
    return groups[stage]


def _classes(config: RunConfig, found: Tokens) -> tuple[str, ...]:
    """Those of the config, or as many as were found."""
    labels = config.data.labels
    if labels is None:
        return ()
    return labels.classes or tuple(map(str, range(found.outputs)))


def _existing(config: RunConfig, instead: str | None) -> Any:
    """The transformers config of a teacher that exists."""
    where = instead or config.teacher.load
    assert where is not None
    if instead and "://" not in where and Path(where).is_file():
        where = str(Path(where).parent)
    try:
        where = loadable(where, weights=False)
        return load_config_of(where, None if instead else config.teacher.revision)
    except KdscaleError as error:
        raise KdscaleError(
            error.problem, f"{error.fix} Or plan with a config.json of its shape: --teacher FOLDER."
        ) from error
