"""Check of every rank's memory, and the nearest change of the config that makes it fit."""

from collections.abc import Iterator
from dataclasses import dataclass

from kdscale.config import RunConfig, override
from kdscale.errors import KdscaleError
from kdscale.plan.inputs import PlanInputs
from kdscale.plan.memory import capacity, memory_of
from kdscale.run.stage_names import ON_WORKERS

_GIB = 2**30


@dataclass(frozen=True)
class Shortage:
    """A stage that does not fit; bytes."""

    stage: str
    where: str  # "device" or "host"
    needed: float
    usable: float
    largest: tuple[str, int]  # part and its bytes

    @property
    def over(self) -> float:
        """Bytes too many."""
        return self.needed - self.usable


def shortage(stage: str, inputs: PlanInputs) -> Shortage | None:
    """Return the first memory, device's or host's, that a rank of `stage` overfills."""
    memory = memory_of(stage, inputs)
    if memory is None:
        return None
    for where, usable in zip(("device", "host"), capacity(stage, inputs), strict=True):
        parts = getattr(memory, where)
        needed = sum(parts.values())
        if needed > usable:
            name = max(parts, key=lambda part: parts[part])
            return Shortage(stage, where, needed, usable, (name, parts[name]))
    return None


def check_fits(inputs: PlanInputs) -> None:
    """Refuse a stage that does not fit, with its excess, its largest part and a change that fits.

    Raises KdscaleError.
    """
    for stage in ON_WORKERS:
        found = shortage(stage, inputs)
        if found is not None:
            raise KdscaleError(
                f"The stage {stage!r} does not fit on {inputs.hardware.name}: a rank needs "
                f"{found.needed / _GIB:.1f} GiB of the {found.where}'s "
                f"{found.usable / _GIB:.1f} GiB, {found.over / _GIB:.1f} GiB too many; the largest "
                f"part is {found.largest[0]}, {found.largest[1] / _GIB:.1f} GiB.",
                _remedy(stage, inputs),
            )


def _remedy(stage: str, inputs: PlanInputs) -> str:
    """Return the first change, or the first few together, after which the stage fits."""
    changes = list(_changes(stage, inputs.config))
    # A later change of the same field replaces the earlier one.
    together: dict[str, str] = {}
    growing = []
    for change in changes:
        together.pop(change.partition("=")[0], None)
        together[change.partition("=")[0]] = change
        growing.append(list(together.values()))
    for tried in [*([change] for change in changes), *growing]:
        try:
            config = override(inputs.config, tried)
        except KdscaleError:
            continue  # the config refuses it
        changed = inputs.with_config(config)
        memory = memory_of(stage, changed)
        if memory is not None and shortage(stage, changed) is None:
            flags = " ".join(f"--set {change}" for change in tried)
            return f"{flags} fits, with {memory.total / _GIB:.1f} GiB."
    return (
        "No ZeRO stage, micro-batch, checkpointing or offload makes it fit: take more workers, a "
        "device with more memory, or a smaller model."
    )


def _changes(stage: str, config: RunConfig) -> Iterator[str]:
    """Yield overrides that lower a stage's memory, the cheapest first.

    Queues, then checkpointing, smaller micro-batches, sharding, offload.
    """
    if stage == "cache":
        capture = config.cache.capture
        yield from _halved("cache.capture.queue_batches", capture.queue_batches)
        yield from _halved("cache.capture.micro_batch_size", capture.micro_batch_size)
        yield from ("cache.capture.teacher_sharding=zero3", "cache.capture.teacher_group=all")
        yield "cache.capture.teacher_offload=cpu"
        yield from _halved("cache.sequences_per_shard", config.cache.sequences_per_shard)
        return
    if stage == "evaluate":
        yield "evaluate.teacher_sharding=zero3"
        yield from _halved("evaluate.micro_batch_size", config.evaluate.micro_batch_size)
        return
    training = config.distill.training if stage == "distill" else config.teacher.training
    assert training is not None
    yield f"{stage}.training.activation_checkpointing=true"
    yield from _halved(f"{stage}.training.micro_batch_size", training.micro_batch_size)
    if stage == "distill" and config.distill.targets == "online":
        yield from ("distill.online.teacher_sharding=zero3", "distill.online.teacher_group=all")
    for zero in range(training.zero.stage + 1, 4):
        yield f"{stage}.training.zero.stage={zero}"
    yield f"{stage}.training.zero.offload=cpu"
    if stage == "distill":
        yield f"distill.cache_memory_mib={max(1, config.distill.cache_memory_mib // 4)}"


def _halved(field: str, value: int) -> Iterator[str]:
    while value > 1:
        value //= 2
        yield f"{field}={value}"
