"""Remarks on a run that would go through, but pays for what it does not use.

How models are spread over devices is for the adviser (advise.py).
"""

from dataclasses import dataclass

from kdscale.plan.cache_size import passes
from kdscale.plan.inputs import PlanInputs
from kdscale.plan.timing import capture_seconds
from kdscale.report.formatting import count, number, percent

_READ = 0.95  # of the cache: below it, the rest is worth a remark


@dataclass(frozen=True)
class Remark:
    """A remark, with the changes that `--set` takes to follow it; there may be none."""

    kind: str
    text: str
    changes: tuple[str, ...] = ()


def remarks(inputs: PlanInputs) -> list[Remark]:
    """Return the remarks on a run."""
    found = (_unread(inputs), _student_size(inputs))
    return [remark for remark in found if remark is not None]


def _unread(inputs: PlanInputs) -> Remark | None:
    """Remark on sequences that are captured, and that no step of the student reads."""
    config, read = inputs.config, passes(inputs)
    if config.cache.reuse is not None or config.distill.targets == "online" or read >= _READ:
        return None
    training = config.distill.training
    hours = capture_seconds(inputs).total * config.cache.capture.workers.count / 3600
    return Remark(
        "unread",
        f"The student reads {percent(read)} of the cache: about {number((1 - read) * hours, 2)} of "
        f"the capture's {number(hours, 2)} device hours are for sequences that this run never "
        "reads. Capture fewer, or train for more steps.",
        (f"cache.sequences={training.steps * training.global_batch_size}",),
    )


def _student_size(inputs: PlanInputs) -> Remark | None:
    """Remark on a student with more parameters than its teacher."""
    teacher, student = inputs.teacher.parameters, inputs.student.parameters
    if student <= teacher:
        return None
    return Remark(
        "student_size",
        f"The student is larger than its teacher: {count(student)} parameters, and {count(teacher)}"
        ". Check distill.student and teacher: they may be swapped.",
    )
