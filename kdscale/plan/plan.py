"""A whole plan: all figures of a run in one object, checked against the hardware, and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from kdscale.plan.cache_size import CacheBytes, Requests, compared, requests
from kdscale.plan.cost import BreakEven, Money, StoreMoney, break_even, device_money, request_money
from kdscale.plan.fit import check_fits
from kdscale.plan.inputs import Setting, workers_of
from kdscale.plan.memory import Memory, capacity, memory_of
from kdscale.plan.scaling import Scaled, scaling
from kdscale.plan.shape import Shape
from kdscale.plan.timing import Seconds, seconds_of
from kdscale.run.stage_names import STAGES

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StagePlan:
    """One stage; times in seconds, memory in bytes of a rank, FLOPs of all ranks."""

    name: str
    workers: int
    positions: int  # of text that models compute on, all arms
    flops: float
    seconds: Seconds
    device_hours: float
    money: Money
    memory: Memory | None
    usable: tuple[float, float] | None  # bytes of device and host that a rank may take


@dataclass(frozen=True)
class Plan:
    """What a run will take."""

    setting: Setting
    stages: list[StagePlan]
    caches: list[CacheBytes]  # the config's codec first
    requests: Requests
    store_money: StoreMoney
    break_even: BreakEven | None
    scaling: list[Scaled]

    @property
    def device_hours(self) -> float:
        """Of all stages."""
        return sum(stage.device_hours for stage in self.stages)

    @property
    def money(self) -> Money:
        """Of all stages' devices; the store's comes on top."""
        return device_money(self.device_hours, self.setting)

    def as_dict(self) -> dict[str, Any]:
        """JSON of schema version 1: `memory` in bytes of a rank, times in seconds, US dollars."""
        setting = self.setting
        measured = setting.measured
        return {
            "schema_version": SCHEMA_VERSION,
            "name": setting.config.name,
            "hardware": setting.hardware.model_dump(),
            "calibration": measured.model_dump() if measured is not None else None,
            "assumptions": assumptions(setting),
            "tokens": asdict(setting.tokens) | {"captured": setting.tokens.captured},
            "models": {
                name: _model(shape, setting)
                for name, shape in (("teacher", setting.teacher), ("student", setting.student))
            },
            "stages": [_stage(stage) for stage in self.stages],
            "total": {"device_hours": self.device_hours, "money": asdict(self.money)},
            "caches": [asdict(each) | {"codec": each.codec.model_dump()} for each in self.caches],
            "requests": asdict(self.requests),
            "store_money": asdict(self.store_money),
            "break_even": asdict(self.break_even) if self.break_even is not None else None,
            "scaling": [asdict(row) for row in self.scaling],
        }


def make_plan(setting: Setting) -> Plan:
    """All figures of a run. Raises KdscaleError where a stage does not fit the hardware."""
    check_fits(setting)
    return Plan(
        setting=setting,
        stages=[_plan_stage(name, setting) for name in STAGES if name != "report"],
        caches=compared(setting),
        requests=requests(setting),
        store_money=request_money(setting),
        break_even=break_even(setting),
        scaling=scaling(setting),
    )


def work(stage: str, setting: Setting) -> tuple[int, float]:
    """(positions, FLOPs) of a stage's models over all ranks, validations left out."""
    config, tokens = setting.config, setting.tokens
    length = tokens.seq_len
    arms = 2 if config.distill.baseline else 1
    forward = setting.teacher.forward_flops(length)
    if stage == "teacher" and config.teacher.training is not None:
        training = config.teacher.training
        positions = training.steps * training.global_batch_size * length
        each = setting.teacher.training_flops(length, training.activation_checkpointing)
        return positions, positions * each
    if stage == "cache" and config.cache.reuse is None:
        return tokens.captured, tokens.captured * forward
    if stage == "distill":
        training = config.distill.training
        positions = training.steps * training.global_batch_size * length
        each = setting.student.training_flops(length, training.activation_checkpointing)
        online = positions * forward if config.distill.targets == "online" else 0
        return arms * positions, arms * positions * each + online
    if stage == "evaluate":
        positions = sum(tokens.evaluation_sequences) * length
        students = arms * setting.student.forward_flops(length)
        return (1 + arms) * positions, positions * (forward + students)
    return 0, 0.0


def assumptions(setting: Setting) -> list[str]:
    """What the figures stand on, a sentence each."""
    hardware, measured = setting.hardware, setting.measured
    lines = [f"Text: {setting.tokens.source}.", f"Prices: {hardware.source}."]
    if measured is None:
        lines.append(
            f"Speed: assumed, {hardware.forward_utilisation:.0%} of {hardware.flops / 1e12:,.3g} "
            f"TFLOP/s in a forward, {hardware.training_utilisation:.0%} in training; "
            "--calibrate measures it."
        )
    else:
        lines.append(
            f"Speed: measured on {measured.device} with {measured.workers} workers, "
            f"{measured.created}: {measured.forward_flops / 1e12:,.3g} TFLOP/s a rank in a "
            f"forward, {measured.training_flops / 1e12:,.3g} in training."
        )
    if setting.is_gpu and not setting.config.cache.capture.workers.gpus:
        lines.append("Workers: the config's have no GPU; planned as if workers.gpus were 1.")
    return lines


def _plan_stage(name: str, setting: Setting) -> StagePlan:
    seconds = seconds_of(name, setting)
    workers = 0 if name == "prepare" else workers_of(name, setting.config).count
    # Preparing runs on the cluster's cores: it holds up what waits for it, one machine of it.
    devices = workers or 1
    hours = devices * seconds.total / 3600
    memory = memory_of(name, setting)
    positions, flops = work(name, setting)
    return StagePlan(
        name=name,
        workers=workers,
        positions=positions,
        flops=flops,
        seconds=seconds,
        device_hours=hours,
        money=device_money(hours, setting),
        memory=memory,
        usable=capacity(name, setting) if memory is not None else None,
    )


def _stage(stage: StagePlan) -> dict[str, Any]:
    found = asdict(stage)
    found["seconds"]["total"] = stage.seconds.total
    if stage.memory is not None:
        found["memory"]["total"] = stage.memory.total
    return found


def _model(shape: Shape, setting: Setting) -> dict[str, Any]:
    length = setting.tokens.seq_len
    return {
        "architecture": shape.architecture,
        "parameters": shape.parameters,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "forward_flops_a_token": shape.forward_flops(length),
        "attention_flops_a_token": shape.attention_flops(length),
    }
