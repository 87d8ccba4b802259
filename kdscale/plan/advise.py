"""The cheapest setting of a stage that fits: micro-batch, queue, and how models are spread.

Every combination is planned as the run's own setting is. What is changed says how a result is
computed, not which: batches, steps and workers stay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from kdscale.config import RunConfig, override
from kdscale.config.training import TeacherGroup
from kdscale.errors import KdscaleError
from kdscale.plan.fit import shortage
from kdscale.plan.groups import check_groups
from kdscale.plan.inputs import PlanInputs, rank_rows, workers_of
from kdscale.plan.memory import memory_of
from kdscale.plan.timing import seconds_of

_MOST_ROWS = 256  # of a micro-batch
# Settings whose times differ by less are equally fast: the one with fewest changes is taken.
_EQUAL = 1.005
_WORTH_SAYING = 0.99  # of the device hours of the run's own setting


_Choice = tuple[str, object, Sequence[object]]
"""A field, its value in the config, and those to try."""


@dataclass(frozen=True)
class Advice:
    """The cheapest setting of a stage that was found, beside the run's own."""

    stage: str
    changes: tuple[str, ...]  # as `--set` takes them; none where the run's own is as cheap
    device_hours: float
    computing: float  # share of these hours in which models compute
    before: float  # device hours of the run's own setting
    memory: int  # bytes of a rank


@dataclass(frozen=True)
class _Tried:
    changes: tuple[str, ...]
    hours: float
    computing: float
    memory: int


def advise(inputs: PlanInputs) -> list[Advice]:
    """Return the cheapest setting of capture and distillation, as far as the run has them."""
    found = []
    for stage in ("cache", "distill"):
        own = _try(stage, (), inputs)
        if own is None:
            continue
        tried = [own]
        for changes in _settings(stage, inputs):
            other = _try(stage, changes, inputs)
            if other is not None:
                tried.append(other)
        least = min(each.hours for each in tried)
        best = min(
            (each for each in tried if each.hours <= _EQUAL * least),
            key=lambda each: (len(each.changes), each.memory),
        )
        if best.hours > _WORTH_SAYING * own.hours:
            best = own
        advice = Advice(stage, best.changes, best.hours, best.computing, own.hours, best.memory)
        found.append(advice)
    return found


def _try(stage: str, changes: tuple[str, ...], inputs: PlanInputs) -> _Tried | None:
    """Return the figures of a stage with `changes`; None where it does not fit, or is not run."""
    try:
        config = override(inputs.config, changes) if changes else inputs.config
        changed = inputs.with_config(config)
        check_groups(changed)
    except KdscaleError:
        return None  # the config refuses it, or the machines do
    memory = memory_of(stage, changed)
    if memory is None or shortage(stage, changed) is not None:
        return None
    seconds = seconds_of(stage, changed)
    hours = seconds.total * workers_of(stage, config).count / 3600
    computing = (seconds.compute + seconds.validation) / seconds.total
    return _Tried(changes, hours, computing, memory.total)


def _settings(stage: str, inputs: PlanInputs) -> Iterator[tuple[str, ...]]:
    """Yield the changes that make each combination out of the config."""
    config, node = inputs.config, inputs.hardware.devices_per_node
    choices = list(_of_capture(config, node) if stage == "cache" else _of_student(config, node))
    for values in product(*(values for _, _, values in choices)):
        changes = [
            f"{name}={str(value).lower()}"
            for (name, own, _), value in zip(choices, values, strict=True)
            if value != own
        ]
        if changes:
            yield tuple(changes)


def _of_capture(config: RunConfig, node: int) -> Iterator[_Choice]:
    """Yield what may be changed of a capture on machines of `node` devices."""
    capture, prefix = config.cache.capture, "cache.capture"
    yield f"{prefix}.teacher_sharding", capture.teacher_sharding, ("none", "zero3")
    yield (
        f"{prefix}.teacher_group",
        capture.teacher_group,
        _groups(capture.teacher_group, capture.workers.count, node),
    )
    sizes = _sizes(config.cache.sequences_per_shard)
    yield f"{prefix}.micro_batch_size", capture.micro_batch_size, sizes
    queue = capture.queue_batches
    yield f"{prefix}.queue_batches", queue, tuple(sorted({1, 2, queue}))


def _of_student(config: RunConfig, node: int) -> Iterator[_Choice]:
    """Yield what may be changed of a distillation on machines of `node` devices."""
    training, prefix = config.distill.training, "distill.training"
    yield f"{prefix}.zero.stage", training.zero.stage, (0, 1, 2, 3)
    sizes = _sizes(rank_rows(training, config.distill.workers.count))
    yield f"{prefix}.micro_batch_size", training.micro_batch_size, sizes
    again = training.activation_checkpointing
    yield f"{prefix}.activation_checkpointing", again, (False, True)
    if config.distill.targets == "online":
        sharding = config.distill.online.teacher_sharding
        yield "distill.online.teacher_sharding", sharding, ("none", "zero3")
        group = config.distill.online.teacher_group
        yield (
            "distill.online.teacher_group",
            group,
            _groups(group, config.distill.workers.count, node),
        )


def _groups(own: TeacherGroup, workers: int, node: int) -> Sequence[TeacherGroup]:
    """Return the groups to try: gathering in larger ones than a node's is never faster."""
    sizes = [1 << power for power in range(1, node.bit_length())]
    dividing = [size for size in sizes if size < workers and workers % size == 0]
    return tuple(dict.fromkeys((own, "auto", "node", *dividing)))


def _sizes(most: int) -> Sequence[int]:
    """Return the micro-batches to try: powers of two up to `most` rows of a rank."""
    return [1 << power for power in range(min(most, _MOST_ROWS).bit_length())]
