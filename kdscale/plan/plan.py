"""A whole plan: all figures of a run in one object, checked against the hardware, and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from kdscale.plan.advise import Advice, advise
from kdscale.plan.cache_size import CacheBytes, Requests, compared, requests
from kdscale.plan.cost import (
    BreakEven,
    Money,
    Scaled,
    StoreMoney,
    break_even,
    device_money,
    scaling,
    store_money,
)
from kdscale.plan.fit import check_fits
from kdscale.plan.groups import check_groups, describe_groups
from kdscale.plan.inputs import PlanInputs, Shape, workers_of
from kdscale.plan.lora import StudentTraining, compare_with_full
from kdscale.plan.memory import Memory, capacity, memory_of
from kdscale.plan.overhead import (
    BaselineCost,
    Idle,
    Interruptions,
    baseline_cost,
    idle_devices,
    interruptions,
)
from kdscale.plan.ranges import Range, at_speed, speeds
from kdscale.plan.remarks import Remark, remarks
from kdscale.plan.timing import Seconds, seconds_of
from kdscale.run.stage_names import STAGES

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class StagePlan:
    """One stage; times in seconds, memory in bytes of a rank, FLOPs of all ranks."""

    name: str
    workers: int
    positions: int  # of text that models compute on, of all models
    flops: float
    seconds: Seconds
    device_hours: float
    device_hours_range: Range
    money: Money
    memory: Memory | None
    usable: tuple[float, float] | None  # bytes of device and host that a rank may take

    @property
    def billion_tokens(self) -> Money | None:
        """Price of a billion tokens of one model of the stage; None where it computes on none."""
        if not self.positions:
            return None
        share = 1e9 / self.positions
        return Money(share * self.money.on_demand, share * self.money.spot)


@dataclass(frozen=True)
class Plan:
    """Figures of a run."""

    inputs: PlanInputs
    stages: list[StagePlan]
    caches: list[CacheBytes]  # the config's codec first
    requests: Requests
    store_money: StoreMoney
    break_even: BreakEven | None
    scaling: list[Scaled]
    lora: list[StudentTraining]  # empty without LoRA
    advice: list[Advice]
    baseline: BaselineCost | None
    idle: list[Idle]
    interruptions: list[Interruptions]  # on spot machines
    remarks: list[Remark]

    @property
    def device_hours_range(self) -> Range:
        """Device hours of all stages where all are as slow, or as fast, as they may be."""
        ranges = [stage.device_hours_range for stage in self.stages]
        return Range(sum(each.low for each in ranges), sum(each.high for each in ranges))

    @property
    def device_hours(self) -> float:
        """Device hours of all stages."""
        return sum(stage.device_hours for stage in self.stages)

    @property
    def money(self) -> Money:
        """Price of all stages' devices, without the store."""
        return device_money(self.device_hours, self.inputs)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON of schema version 2: memory in bytes of a rank, seconds, US dollars."""
        inputs, measured = self.inputs, self.inputs.measured
        models = {"teacher": inputs.teacher, "student": inputs.student}
        return {
            "schema_version": SCHEMA_VERSION,
            "name": inputs.config.name,
            "hardware": inputs.hardware.model_dump(),
            "calibration": measured.model_dump() if measured is not None else None,
            "assumptions": assumptions(inputs),
            "tokens": asdict(inputs.tokens) | {"captured": inputs.tokens.captured},
            "models": {name: _model(shape, inputs) for name, shape in models.items()},
            "stages": [_stage(stage) for stage in self.stages],
            "total": {
                "device_hours": self.device_hours,
                "device_hours_range": asdict(self.device_hours_range),
                "money": asdict(self.money),
            },
            "caches": [asdict(each) | {"codec": each.codec.model_dump()} for each in self.caches],
            "requests": asdict(self.requests),
            "store_money": asdict(self.store_money),
            "break_even": asdict(self.break_even) if self.break_even is not None else None,
            "scaling": [asdict(row) for row in self.scaling],
            "lora": [asdict(row) for row in self.lora],
            "advice": [asdict(row) for row in self.advice],
            "baseline": asdict(self.baseline) if self.baseline is not None else None,
            "idle": [asdict(row) for row in self.idle],
            "interruptions": [asdict(row) for row in self.interruptions],
            "remarks": [asdict(row) for row in self.remarks],
        }


def make_plan(inputs: PlanInputs) -> Plan:
    """Work out all figures of a run.

    Raises KdscaleError where a stage does not fit, or the machines make no groups of workers.
    """
    check_groups(inputs)
    check_fits(inputs)
    asked = requests(inputs)
    return Plan(
        inputs=inputs,
        stages=[_plan_stage(name, inputs) for name in STAGES if name != "report"],
        caches=compared(inputs),
        requests=asked,
        store_money=store_money(asked, inputs),
        break_even=break_even(inputs),
        scaling=scaling(inputs),
        lora=compare_with_full(inputs),
        advice=advise(inputs),
        baseline=baseline_cost(inputs),
        idle=idle_devices(inputs),
        interruptions=interruptions(inputs),
        remarks=remarks(inputs),
    )


def work(stage: str, inputs: PlanInputs) -> tuple[int, float]:
    """Return (positions, FLOPs) of a stage's models over all ranks, without validations."""
    config, tokens, students = inputs.config, inputs.tokens, inputs.students
    length = tokens.seq_len
    forward = inputs.teacher.forward_flops(length)
    if stage == "cache" and config.cache.reuse is None:
        return tokens.captured, tokens.captured * forward
    if stage == "evaluate":
        positions = sum(tokens.evaluation_sequences) * length
        each = forward + inputs.evaluated_students * inputs.student.forward_flops(length)
        return (1 + inputs.evaluated_students) * positions, positions * each
    training = {"teacher": config.teacher.training, "distill": config.distill.training}.get(stage)
    if training is None:
        return 0, 0.0
    shape, models = (inputs.teacher, 1) if stage == "teacher" else (inputs.student, students)
    positions = training.steps * training.global_batch_size * length
    each = shape.training_flops(length, training.activation_checkpointing)
    is_online = stage == "distill" and config.distill.targets == "online"
    return models * positions, models * positions * each + (positions * forward if is_online else 0)


def assumptions(inputs: PlanInputs) -> list[str]:
    """Return what the figures rest on, a sentence each."""
    hardware, measured = inputs.hardware, inputs.measured
    lines = [f"Text: {inputs.tokens.source}.", f"Prices: {hardware.source}."]
    slow, fast = speeds(inputs)
    if measured is None:
        what, more = "given", ""
        if inputs.mfu is None:
            what, more = "assumed", "; --calibrate measures it, --mfu gives it"
        lines.append(
            f"Speed: {what}, {hardware.forward_utilisation:.0%} of {hardware.flops / 1e12:,.3g} "
            f"TFLOP/s in a forward, {hardware.training_utilisation:.0%} in training{more}."
        )
    else:
        lines.append(
            f"Speed: measured on {measured.device} with {measured.workers} workers, "
            f"{measured.created}: {measured.forward_flops / 1e12:,.3g} TFLOP/s a rank in a "
            f"forward, {measured.training_flops / 1e12:,.3g} in training."
        )
    lines += describe_groups(inputs)
    lines.append(f"Ranges: devices that compute {slow:g} to {fast:g} times as fast as that.")
    if inputs.is_gpu and not inputs.config.cache.capture.workers.gpus:
        lines.append("Workers: the config's have no GPU; planned as if workers.gpus were 1.")
    return lines


def _plan_stage(name: str, inputs: PlanInputs) -> StagePlan:
    seconds = seconds_of(name, inputs)
    workers = 0 if name == "prepare" else workers_of(name, inputs.config).count
    # Preparing runs on the cluster's cores: one machine of it is occupied.
    planned = (inputs, *(at_speed(inputs, factor) for factor in speeds(inputs)))
    hours, *others = ((workers or 1) * seconds_of(name, each).total / 3600 for each in planned)
    memory = memory_of(name, inputs)
    positions, flops = work(name, inputs)
    return StagePlan(
        name=name,
        workers=workers,
        positions=positions,
        flops=flops,
        seconds=seconds,
        device_hours=hours,
        # What a slow device hides behind its computing, a fast one may wait for.
        device_hours_range=Range(min(hours, *others), max(hours, *others)),
        money=device_money(hours, inputs),
        memory=memory,
        usable=capacity(name, inputs) if memory is not None else None,
    )


def _stage(stage: StagePlan) -> dict[str, Any]:
    found = asdict(stage)
    found["seconds"]["total"] = stage.seconds.total
    price = stage.billion_tokens
    found["billion_tokens"] = asdict(price) if price is not None else None
    if stage.memory is not None:
        found["memory"]["total"] = stage.memory.total
    return found


def _model(shape: Shape, inputs: PlanInputs) -> dict[str, Any]:
    length = inputs.tokens.seq_len
    return {
        "architecture": shape.architecture,
        "parameters": shape.parameters,
        "active_parameters": shape.active,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "forward_flops_a_token": shape.forward_flops(length),
        "attention_flops_a_token": shape.attention_flops(length),
    }
