"""The same run on 1 to 1,024 devices: what capture and student take, and how well they scale.

Capture is embarrassingly parallel: shards are independent, and only their last round and, under
ZeRO-3, gathering the weights stand against it. A student keeps its global batch, so that its steps
stay the same ones (strong scaling): an all-reduce, and ranks that have no row left, bound it.
"""

from dataclasses import dataclass
from typing import Any

from kdscale.config import RunConfig
from kdscale.plan.cost import Money, device_money
from kdscale.plan.fit import shortage
from kdscale.plan.inputs import Setting
from kdscale.plan.timing import Seconds, capture_seconds, distill_seconds

DEVICES = (1, 8, 64, 256, 1024)


@dataclass(frozen=True)
class Scaled:
    """Wall hours of both stages on `devices`; efficiency is device hours on one over those on so
    many, start-up left out."""

    devices: int
    capture_hours: float
    capture_efficiency: float
    capture_fits: bool
    distill_hours: float
    distill_efficiency: float
    distill_fits: bool
    money: Money


def scaling(setting: Setting) -> list[Scaled]:
    """A row for each number of devices."""
    one = _on(setting, 1)
    first = _work(capture_seconds(one)), _work(distill_seconds(one))
    rows = []
    for devices in DEVICES:
        here = _on(setting, devices)
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
                money=device_money(hours, setting),
            )
        )
    return rows


def _on(setting: Setting, devices: int) -> Setting:
    """The setting with so many workers in both stages."""
    tree: dict[str, Any] = setting.config.model_dump()
    tree["cache"]["capture"]["workers"]["count"] = devices
    tree["distill"]["workers"]["count"] = devices
    return setting.with_config(RunConfig.model_validate(tree))


def _work(found: Seconds) -> float:
    return found.compute + found.communication + found.encoding


def _share(one: float, many: float) -> float:
    return one / many if many else 1.0
