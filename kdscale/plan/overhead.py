"""Costs of a run beside its teacher and its student: baseline, idle devices, interruptions."""

import math
from dataclasses import dataclass

from kdscale.plan.cost import Money, device_money
from kdscale.plan.inputs import PlanInputs, workers_of
from kdscale.plan.timing import group_start, seconds_of
from kdscale.run.stage_names import ON_WORKERS


@dataclass(frozen=True)
class BaselineCost:
    """Cost that the baseline adds to training and evaluation."""

    device_hours: float
    money: Money


@dataclass(frozen=True)
class Idle:
    """Devices that wait during a stage of one device or none, if the run holds all it ever uses."""

    stage: str
    devices: int
    device_hours: float
    money: Money


@dataclass(frozen=True)
class Interruptions:
    """Expected interruptions of a stage on spot machines, and what is computed again."""

    stage: str
    machines: int
    expected: float
    seconds_each: float  # of the whole group: work since the last checkpoint, and a new start
    device_hours: float


def baseline_cost(inputs: PlanInputs) -> BaselineCost | None:
    """Return the device hours of training and evaluating the baseline; None without one."""
    config = inputs.config
    if not config.distill.baseline:
        return None
    distill = config.distill.model_copy(update={"baseline": False})
    without = inputs.with_config(config.model_copy(update={"distill": distill}))
    hours = sum(
        (seconds_of(stage, inputs).total - seconds_of(stage, without).total)
        * workers_of(stage, config).count
        / 3600
        for stage in ("distill", "evaluate")
    )
    return BaselineCost(hours, device_money(hours, inputs))


def idle_devices(inputs: PlanInputs) -> list[Idle]:
    """Return the stages in which all but one device at most wait, where these are GPUs.

    On a CPU the stages on one worker use the other cores too.
    """
    if not inputs.is_gpu:
        return []
    seconds = {stage: seconds_of(stage, inputs).total for stage in ("prepare", *ON_WORKERS)}
    used = {stage: workers_of(stage, inputs.config).count for stage in ON_WORKERS}
    held = max(used[stage] for stage in ON_WORKERS if seconds[stage])
    used["prepare"] = 0
    found = []
    for stage, wall in seconds.items():
        idle = held - used[stage]
        if wall and used[stage] <= 1 and idle:
            hours = idle * wall / 3600
            found.append(Idle(stage, idle, hours, device_money(hours, inputs)))
    return found


def interruptions(inputs: PlanInputs) -> list[Interruptions]:
    """Return the expected interruptions of training and capture on spot machines.

    machines x hours x rate of them, each at the cost of half a checkpoint interval and a new start
    of the whole group (Young 1974, "A first order approximation to the optimum checkpoint
    interval"). A capture's interval is a shard of each rank. Interruptions of the work that is
    done again are left out.
    """
    found = []
    for stage in ("teacher", "cache", "distill"):
        seconds = seconds_of(stage, inputs)
        ranks = workers_of(stage, inputs.config).count
        machines = inputs.machines(ranks)
        expected = inputs.hardware.interruptions * machines * seconds.total / 3600
        if not expected:
            continue
        interval = (seconds.total - seconds.start_up) / _intervals(stage, inputs, ranks)
        each = interval / 2 + group_start(inputs)
        hours = expected * each * ranks / 3600
        found.append(Interruptions(stage, machines, expected, each, hours))
    return found


def _intervals(stage: str, inputs: PlanInputs, ranks: int) -> float:
    """Return how many checkpoints' worth of work a stage has: steps, or rounds of shards."""
    config = inputs.config
    if stage == "cache":
        return math.ceil(inputs.cache_shards / ranks)
    training = config.teacher.training if stage == "teacher" else config.distill.training
    assert training is not None
    models = inputs.students if stage == "distill" else 1
    return models * max(1.0, training.steps / training.checkpoint_every)
