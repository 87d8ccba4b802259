"""Whether every rank's memory fits, and if not, the nearest change of the config that does."""

from collections.abc import Iterator
from dataclasses import dataclass

from kdscale.config import RunConfig, dump_config, parse_config
from kdscale.errors import KdscaleError
from kdscale.plan.inputs import Setting
from kdscale.plan.memory import Memory, capacity, memory_of
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


def shortage(stage: str, setting: Setting) -> Shortage | None:
    """The first memory, device's or host's, that a rank of `stage` overfills."""
    memory = memory_of(stage, setting)
    if memory is None:
        return None
    for where, usable in zip(("device", "host"), capacity(stage, setting), strict=True):
        parts = getattr(memory, where)
        needed = sum(parts.values())
        if needed > usable:
            name = max(parts, key=lambda part: parts[part])
            return Shortage(stage, where, needed, usable, (name, parts[name]))
    return None


def check_fits(setting: Setting) -> None:
    """Raise KdscaleError where a stage does not fit: which, by how much, through which part, and
    the nearest change that fits."""
    for stage in ON_WORKERS:
        found = shortage(stage, setting)
        if found is not None:
            name = setting.hardware.name
            raise KdscaleError(
                f"The stage {stage!r} does not fit on {name}: a rank needs "
                f"{found.needed / _GIB:.1f} GiB of the {found.where}'s "
                f"{found.usable / _GIB:.1f} GiB, {found.over / _GIB:.1f} GiB too many; the largest "
                f"part is {found.largest[0]}, {found.largest[1] / _GIB:.1f} GiB.",
                _remedy(stage, setting),
            )


def _remedy(stage: str, setting: Setting) -> str:
    """The first change, or the first few together, after which the stage fits."""
    changes: list[str] = []
    for change in _changes(stage, setting.config):
        alone = _changed(setting, [change])
        if alone is not None and shortage(stage, alone) is None:
            return _told(stage, [change], alone)
    for change in _changes(stage, setting.config):
        # A later change of the same field replaces the earlier one.
        field = change.partition("=")[0]
        changes = [c for c in changes if c.partition("=")[0] != field] + [change]
        together = _changed(setting, changes)
        if together is not None and shortage(stage, together) is None:
            return _told(stage, changes, together)
    return (
        "No ZeRO stage, micro-batch, checkpointing or offload makes it fit: take more workers, a "
        "device with more memory, or a smaller model."
    )


def _told(stage: str, changes: list[str], setting: Setting) -> str:
    memory = memory_of(stage, setting)
    assert isinstance(memory, Memory)
    flags = " ".join(f"--set {change}" for change in changes)
    return f"{flags} fits, with {memory.total / _GIB:.1f} GiB."


def _changed(setting: Setting, changes: list[str]) -> Setting | None:
    """The setting after `changes`; None where the config refuses them."""
    try:
        return setting.with_config(parse_config(dump_config(setting.config), changes))
    except KdscaleError:
        return None


def _changes(stage: str, config: RunConfig) -> Iterator[str]:
    """Overrides that lower a stage's memory, those that cost least first: what waits, then
    checkpointing, smaller micro-batches, sharding, offload."""
    if stage == "cache":
        capture = config.cache.capture
        for waiting in _halved(capture.queue_batches):
            yield f"cache.capture.queue_batches={waiting}"
        for rows in _halved(capture.micro_batch_size):
            yield f"cache.capture.micro_batch_size={rows}"
        yield from ("cache.capture.zero.stage=3", "cache.capture.zero.offload=cpu")
        for rows in _halved(config.cache.sequences_per_shard):
            yield f"cache.sequences_per_shard={rows}"
        return
    if stage == "evaluate":
        yield "evaluate.teacher_zero=3"
        for rows in _halved(config.evaluate.micro_batch_size):
            yield f"evaluate.micro_batch_size={rows}"
        return
    training = config.distill.training if stage == "distill" else config.teacher.training
    assert training is not None
    yield f"{stage}.training.activation_checkpointing=true"
    for rows in _halved(training.micro_batch_size):
        yield f"{stage}.training.micro_batch_size={rows}"
    if stage == "distill" and config.distill.targets == "online":
        yield "distill.online.zero=3"
    for zero in (1, 2, 3):
        if zero > training.zero.stage:
            yield f"{stage}.training.zero.stage={zero}"
    yield f"{stage}.training.zero.offload=cpu"
    if stage == "distill":
        yield f"distill.cache_memory_mib={max(1, config.distill.cache_memory_mib // 4)}"


def _halved(value: int) -> Iterator[int]:
    while value > 1:
        value //= 2
        yield value
