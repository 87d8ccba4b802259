"""Remarks on a run that would go through, but pays for what it does not use."""

from dataclasses import dataclass

from kdscale.plan.cache_size import passes
from kdscale.plan.fit import shortage
from kdscale.plan.inputs import PlanInputs
from kdscale.plan.timing import capture_seconds
from kdscale.report.formatting import count, number, percent

_READ = 0.95  # of the cache: below it, the rest is worth a remark
_WORTH_SAYING = 0.99  # of the capture's device hours


@dataclass(frozen=True)
class Remark:
    """A remark, with the changes that `--set` takes to follow it; there may be none."""

    kind: str
    text: str
    changes: tuple[str, ...] = ()


def remarks(inputs: PlanInputs) -> list[Remark]:
    """Return the remarks on a run."""
    found = (_unread(inputs), _student_size(inputs), _sharding(inputs))
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


def _sharding(inputs: PlanInputs) -> Remark | None:
    """Remark on a teacher that is sharded over more devices than hold it, where that costs time."""
    capture = inputs.config.cache.capture
    own = capture.workers.count
    if inputs.config.cache.reuse is not None or capture.teacher_sharding == "none":
        return None
    counts = [1 << power for power in range(1, own.bit_length()) if 1 << power < own]
    fitting = [n for n in counts if shortage("cache", _captured_by(n, inputs)) is None]
    if not fitting:
        return None
    hours = {n: _capture_hours(n, inputs) for n in (*fitting, own)}
    best = min(fitting, key=lambda n: hours[n])
    if hours[best] > _WORTH_SAYING * hours[own]:
        return None
    return Remark(
        "sharding",
        f"The teacher is sharded over {own} devices, and {fitting[0]} hold it. On {best} the "
        f"capture takes {number(hours[best], 2)} device hours instead of {number(hours[own], 2)}, "
        "as they wait less for each other's weights.",
        (f"cache.capture.workers.count={best}",),
    )


def _captured_by(workers: int, inputs: PlanInputs) -> PlanInputs:
    """Return the same run with so many workers in its capture."""
    cache = inputs.config.cache
    group = cache.capture.workers.model_copy(update={"count": workers})
    capture = cache.capture.model_copy(update={"workers": group})
    changed = cache.model_copy(update={"capture": capture})
    return inputs.with_config(inputs.config.model_copy(update={"cache": changed}))


def _capture_hours(workers: int, inputs: PlanInputs) -> float:
    return capture_seconds(_captured_by(workers, inputs)).total * workers / 3600
