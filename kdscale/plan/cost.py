"""Money of a run, break-even of its cache, and the same run on 1 to 1,024 devices."""

import math
from dataclasses import dataclass
from typing import Any

from kdscale.config import RunConfig
from kdscale.plan.cache_size import Requests, cache_bytes, passes
from kdscale.plan.fit import shortage
from kdscale.plan.inputs import PlanInputs
from kdscale.plan.timing import Seconds, capture_seconds, distill_seconds, online_forward_seconds

# S3 Standard in us-east-1, US dollars: a GB and month, 1,000 puts or lists, 1,000 gets or heads
# (https://aws.amazon.com/s3/pricing, 2025).
STORED_GB_MONTH, PUTS, GETS = 0.023, 0.005, 0.0004
DEVICES = (1, 8, 64, 256, 1024)


@dataclass(frozen=True)
class Money:
    """US dollars."""

    on_demand: float
    spot: float


@dataclass(frozen=True)
class StoreMoney:
    """US dollars: once for the requests, every month for the bytes."""

    requests: float
    month: float


@dataclass(frozen=True)
class BreakEven:
    """Number of passes over the cached text from which a cache is cheaper than online teaching."""

    capture_device_hours: float
    online_device_hours_a_pass: float  # added by an online teacher to one pass of one student
    passes: float
    passes_of_this_run: float
    online_saved_device_hours: float  # by this run; negative where the cache costs more


@dataclass(frozen=True)
class Scaled:
    """Wall hours of capture and distillation on `devices`.

    Efficiency is device hours on one over those on so many, start-up left out.
    """

    devices: int
    capture_hours: float
    capture_efficiency: float
    capture_fits: bool
    distill_hours: float
    distill_efficiency: float
    distill_fits: bool
    money: Money


def device_money(device_hours: float, inputs: PlanInputs) -> Money:
    """Return the price of device hours."""
    hardware = inputs.hardware
    return Money(device_hours * hardware.on_demand, device_hours * hardware.spot)


def store_money(found: Requests, inputs: PlanInputs) -> StoreMoney:
    """Return the price of requests and of the cache they leave.

    $0.005 for 1,000 puts and lists, $0.0004 for 1,000 gets and heads, $0.023 a GB and month.
    Reading within a region costs nothing else.
    """
    config = inputs.config.cache
    kept = cache_bytes(config, config.codec, inputs).stored
    asked = (found.puts + found.lists) * PUTS + (found.gets + found.heads) * GETS
    return StoreMoney(asked / 1000, kept / 1e9 * STORED_GB_MONTH)


def break_even(inputs: PlanInputs) -> BreakEven | None:
    """Return capture device hours / device hours that an online teacher adds to a pass.

    Both run the same forward, so that this is 1 plus the cost of encoding, start-up and idle ranks,
    less what an online teacher waits longer for its weights; each further pass, student or seed is
    free of the teacher. The baseline needs no teacher. None where no cache is captured.
    """
    config = inputs.config
    if config.cache.reuse is not None:
        return None
    capture = capture_seconds(inputs).total * config.cache.capture.workers.count / 3600
    ours = passes(inputs)
    online = sum(online_forward_seconds(inputs)) * config.distill.workers.count / 3600 / ours
    needed = capture / online if online else math.inf
    return BreakEven(capture, online, needed, ours, ours * online - capture)


def scaling(inputs: PlanInputs) -> list[Scaled]:
    """Return the run's capture and distillation for each number of devices.

    Capture is embarrassingly parallel: shards are independent, and only their last round and, under
    ZeRO-3, gathering the weights limit it. A student keeps its global batch and so its steps
    (strong scaling): an all-reduce, and ranks without a sequence, limit it.
    """
    one = _on(inputs, 1)
    first = _work(capture_seconds(one)), _work(distill_seconds(one))
    rows = []
    for devices in DEVICES:
        here = _on(inputs, devices)
        capture, distill = capture_seconds(here), distill_seconds(here)
        hours = (capture.total + distill.total) * devices / 3600
        rows.append(
            Scaled(
                devices=devices,
                capture_hours=capture.total / 3600,
                capture_efficiency=_share(first[0], devices * _work(capture)),
                capture_fits=shortage("cache", here) is None,
                distill_hours=distill.total / 3600,
                distill_efficiency=_share(first[1], devices * _work(distill)),
                distill_fits=shortage("distill", here) is None,
                money=device_money(hours, inputs),
            )
        )
    return rows


def _on(inputs: PlanInputs, devices: int) -> PlanInputs:
    """Return the inputs with so many workers in both stages."""
    tree: dict[str, Any] = inputs.config.model_dump()
    tree["cache"]["capture"]["workers"]["count"] = devices
    tree["distill"]["workers"]["count"] = devices
    for placed in (tree["cache"]["capture"], tree["distill"]["online"]):
        group = placed["teacher_group"]
        if isinstance(group, int) and devices % group:
            placed["teacher_group"] = "auto"
    return inputs.with_config(RunConfig.model_validate(tree))


def _work(found: Seconds) -> float:
    return found.compute + found.communication + found.encoding


def _share(one: float, many: float) -> float:
    return one / many if many else 1.0
