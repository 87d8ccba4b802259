"""A student's adapters (LoRA) beside training all of its weights: memory, time, checkpoints."""

from dataclasses import dataclass, replace

from kdscale.plan.inputs import PlanInputs
from kdscale.plan.memory import distill_memory
from kdscale.plan.timing import step_seconds


@dataclass(frozen=True)
class StudentTraining:
    """One way to train the student."""

    name: str
    trained: int  # parameters
    memory: int  # bytes on the device of a rank
    step_seconds: float  # compute and communication that is not hidden
    checkpoint: int  # bytes, over all ranks


def compare_with_full(inputs: PlanInputs) -> list[StudentTraining]:
    """Return this run's LoRA and the same run with all weights trained; empty without LoRA."""
    distill = inputs.config.distill
    if distill.student.lora is None:
        return []
    student = distill.student.model_copy(update={"lora": None})
    config = inputs.config.model_copy(
        update={"distill": distill.model_copy(update={"student": student})}
    )
    full = replace(inputs, config=config, student=replace(inputs.student, adapters=None))
    return [_measure("LoRA (this run)", inputs), _measure("all weights", full)]


def _measure(name: str, inputs: PlanInputs) -> StudentTraining:
    training = inputs.config.distill.training
    compute, exposed = step_seconds(inputs.student, training, "distill", inputs)
    return StudentTraining(
        name=name,
        trained=inputs.student.trained,
        memory=distill_memory(inputs).total,
        step_seconds=compute + exposed,
        checkpoint=12 * inputs.student.trained,
    )
