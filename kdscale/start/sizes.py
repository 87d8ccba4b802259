"""Sizes of a run by the figures of `kdscale plan`: workers, batches, sharding, rows, steps."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from kdscale.config.cache import FullCodec
from kdscale.config.hardware import Hardware
from kdscale.errors import KdscaleError
from kdscale.plan.advise import advise
from kdscale.plan.cache_size import cache_bytes
from kdscale.plan.fit import shortage
from kdscale.plan.inputs import PlanInputs, read_inputs
from kdscale.plan.timing import seconds_of
from kdscale.run.artifacts import resolve_paths
from kdscale.run.stage_names import ON_WORKERS, STAGES
from kdscale.start.draft import Settings, config_of
from kdscale.store import open_store

_MOST_GPUS = 1024
# Positions of a step; and what a run may take, where the data would be enough for more.
_STEP_TOKENS = {"cpu": 2**11, "gpu": 2**16}
_MOST_SECONDS = {"cpu": 30 * 60.0, "gpu": 24 * 3600.0}
_LEAST_ROWS = 64
# A short corpus is read several times, until the student has made this many steps.
_ENOUGH_STEPS, _MOST_PASSES = 1000, 4
_LEAST_STEPS = 200  # for which batches become smaller
_SHARDS_A_WORKER = 4
_FREE_SHARE = 0.5  # of the output's disk, for the cache
# Peak learning rate of a student by its parameters, up to each bound.
_LEARNING_RATES = ((1e7, 1e-3), (1e8, 5e-4), (1e9, 2e-4), (math.inf, 1e-4))
_LEFT_OUT = {
    "cache.sequences_per_shard": 512,
    "cache.sequences_per_chunk": 64,
    "distill.training.zero": {"stage": 0},
    "distill.training.activation_checkpointing": False,
    "cache.capture.queue_batches": 4,
    "cache.capture.workers": {"count": 2},
    "distill.workers": {"count": 2},
    "evaluate.workers": {"count": 2},
    "evaluate.micro_batch_size": 8,
}
"""Defaults, which need not be written."""


@dataclass(frozen=True)
class Sized:
    """Settings with all sizes, and the plan's inputs that they were chosen by."""

    settings: Settings
    inputs: PlanInputs
    workers: int

    @property
    def seconds(self) -> float:
        """Planned time of the whole run."""
        return _seconds(self.inputs)

    @property
    def is_cut(self) -> bool:
        """True if only some of the data's rows are captured."""
        return self.inputs.tokens.captured_rows < self.inputs.tokens.rows


def choose_sizes(settings: Settings, hardware: Hardware, gpus: int | None) -> Sized:
    """Return the settings with sizes that fit on the hardware, and the fastest of these.

    On GPUs the fewest that hold the run, where their number is not given. Raises KdscaleError where
    nothing fits.
    """
    first = settings | _workers(1, hardware) | _batch(settings, 1, hardware, None)
    inputs = read_inputs(resolve_paths(config_of(first)), hardware)
    counts = _counts(hardware, gpus)
    for count in counts:
        if found := _fitting(settings | _workers(count, hardware), count, inputs):
            return found
    more = [n for n in _counts(hardware, None) if n > counts[-1]]
    for count in more:
        if _fitting(settings | _workers(count, hardware), count, inputs):
            raise KdscaleError(
                f"Teacher and student do not fit on {counts[-1]} {hardware.name}.",
                f"Give more: --gpus {count}.",
            )
    where = "this machine" if hardware.kind == "cpu" else f"{_MOST_GPUS} {hardware.name}"
    raise KdscaleError(
        f"Teacher and student do not fit on {where} ({hardware.memory_gib:.0f} GiB each), however "
        "they are spread.",
        "Give another --hardware, such as H100 or H200, or smaller models.",
    )


def _counts(hardware: Hardware, gpus: int | None) -> list[int]:
    """Return the numbers of workers to try."""
    if hardware.kind == "cpu":
        return [min(2, hardware.devices_per_node)]
    return [1 << n for n in range(_MOST_GPUS.bit_length())] if gpus is None else [gpus]


def _workers(count: int, hardware: Hardware) -> Settings:
    """Return `count` workers for each stage that has some; on CPUs with all cores."""
    each: dict[str, int] = {"count": count}
    if hardware.kind == "gpu":
        each["gpus"] = 1
    elif (cores := hardware.devices_per_node // count) > 1:
        each["cpus"] = cores
    return {f"{stage}.workers": each for stage in ("cache.capture", "distill", "evaluate")}


def _batch(settings: Settings, count: int, hardware: Hardware, rows: int | None) -> Settings:
    """Return steps and batches of the student for so many captured rows (None: not known)."""
    length = settings["data.seq_len"]
    wanted = max(1, _STEP_TOKENS[hardware.kind] // length)
    if rows is not None:
        wanted = min(wanted, max(1, _MOST_PASSES * rows // _LEAST_STEPS))
    batch = count * max(1, round(wanted / count))
    steps = 1
    if rows is not None:
        batch = min(batch, rows)
        passes = min(_MOST_PASSES, max(1, math.ceil(_ENOUGH_STEPS * batch / rows)))
        steps = max(1, rows * passes // batch)
    return {"distill.training.steps": steps, "distill.training.global_batch_size": batch}


def _fitting(settings: Settings, count: int, inputs: PlanInputs) -> Sized | None:
    """Return the fastest settings that fit with the workers given; None where none do."""
    rows = inputs.tokens.rows
    settings = settings | _batch(settings, count, inputs.hardware, rows)
    settings |= {"distill.training.optimiser": {"learning_rate": _learning_rate(inputs)}}
    for spread in _spreads():
        tried = inputs.with_config(config_of(settings | spread))
        if all(shortage(stage, tried) is None for stage in ON_WORKERS):
            return _sized(_advised(settings | spread, tried), count, inputs)
    return None


def _spreads() -> Iterator[Settings]:
    """Yield ways to spread models over workers, that with least communication first."""
    ways = (("none", 0, False), ("zero3", 1, False), ("zero3", 2, False), ("zero3", 3, False))
    for sharding, stage, again in (*ways, ("zero3", 3, True)):
        for size in (8, 4, 2, 1):
            yield {
                "cache.capture.teacher_sharding": sharding,
                "cache.capture.micro_batch_size": size,
                "distill.training.micro_batch_size": size,
                "distill.training.zero": {"stage": stage},
                "distill.training.activation_checkpointing": again,
                "evaluate.teacher_sharding": sharding,
                "evaluate.micro_batch_size": size,
            }


def _advised(settings: Settings, inputs: PlanInputs) -> Settings:
    """Return the settings with the changes that the plan advises."""
    settings = dict(settings)
    for advice in advise(inputs):
        for change in advice.changes:
            name, _, value = change.partition("=")
            if name == "distill.training.zero.stage":
                settings["distill.training.zero"] = {"stage": int(value)}
            else:
                settings[name] = yaml.safe_load(value)
    return settings


def _sized(settings: Settings, count: int, inputs: PlanInputs) -> Sized:
    """Return the settings with as many rows as time and disk allow."""
    rows = inputs.tokens.rows
    while True:
        sizes = settings | _batch(settings, count, inputs.hardware, rows)
        per_shard = min(512, max(8, -(-rows // (_SHARDS_A_WORKER * count))))
        sizes["cache.sequences_per_shard"] = per_shard
        sizes["cache.sequences_per_chunk"] = min(64, per_shard)
        if rows < inputs.tokens.rows:
            sizes["cache.sequences"] = rows
        tokens = replace(inputs.tokens, captured_rows=rows)
        planned = replace(inputs, config=config_of(sizes), tokens=tokens)
        if rows <= _LEAST_ROWS or _is_affordable(planned):
            break
        rows = max(_LEAST_ROWS, rows // 2)
    cache = planned.config.cache
    stored = cache_bytes(cache, cache.codec, planned).stored
    if cache_bytes(cache, FullCodec(), planned).stored <= stored:
        sizes["cache.codec"] = {"kind": "full"}
    left = {name: value for name, value in sizes.items() if _LEFT_OUT.get(name) != value}
    return Sized(left, planned, count)


def _is_affordable(inputs: PlanInputs) -> bool:
    """Return whether the run takes no more time and disk than it may."""
    if _seconds(inputs) > _MOST_SECONDS[inputs.hardware.kind]:
        return False
    folder = open_store(inputs.config.output).local_path()
    if folder is None:
        return True
    there = next((each for each in (folder, *folder.parents) if each.is_dir()), Path("/"))
    cache = inputs.config.cache
    stored = cache_bytes(cache, cache.codec, inputs).stored
    return stored <= _FREE_SHARE * shutil.disk_usage(there).free


def _seconds(inputs: PlanInputs) -> float:
    return sum(seconds_of(stage, inputs).total for stage in STAGES if stage != "report")


def _learning_rate(inputs: PlanInputs) -> float:
    parameters = inputs.student.parameters
    return next(rate for bound, rate in _LEARNING_RATES if parameters <= bound)
