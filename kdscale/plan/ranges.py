"""Ranges of a plan: the run planned again on slower and on faster devices.

What a model reaches of a device's peak is the one assumption that most of a plan hangs on. Where it
is assumed, a factor of 0.7 to 1.4 covers what is published for training at scale: 25% to 49% of the
peak around the 35% that are assumed (PaLM reports 46%, arXiv:2204.02311; Llama 3 38% to 43%,
arXiv:2407.21783). Where it was measured by a calibration, or is given, predictions were within 10%
of real runs (docs/plan.md).
"""

from dataclasses import dataclass

from kdscale.plan.inputs import PlanInputs

_ASSUMED, _KNOWN = (0.7, 1.4), (0.9, 1.1)


@dataclass(frozen=True)
class Range:
    """Least and most of a figure."""

    low: float
    high: float

    def times(self, factor: float) -> "Range":
        """Return the range of a figure that is `factor` >= 0 times this one."""
        return Range(factor * self.low, factor * self.high)


def speeds(inputs: PlanInputs) -> tuple[float, float]:
    """Return the slowest and the fastest device, as multiples of the one planned with."""
    return _ASSUMED if inputs.measured is None and inputs.mfu is None else _KNOWN


def at_speed(inputs: PlanInputs, factor: float) -> PlanInputs:
    """Return the same run on devices that compute `factor` times as fast."""
    hardware, measured = inputs.hardware, inputs.measured
    shares = {
        name: min(1.0, factor * getattr(hardware, name))
        for name in ("forward_utilisation", "training_utilisation")
    }
    inputs = inputs.with_hardware(hardware.model_copy(update=shares))
    if measured is None:
        return inputs
    rates = {
        name: factor * rate
        for name in ("forward_flops", "training_flops", "teacher_flops", "encode_tokens")
        if (rate := getattr(measured, name)) is not None
    }
    return inputs.with_measured(measured.model_copy(update=rates))
