"""Time of what the evaluate stage does on one rank alone, while the others wait.

Speeds are measured and texts are written with whole models, one forward after the other. Many of
these are short, so that a forward takes what Python needs for its layers, if that is more than the
products take.
"""

from kdscale.evaluate.speed import LATENCY_TURNS, SINGLES
from kdscale.plan.inputs import PlanInputs, Shape

# Of a forward, at least, a layer: what transformers' Python takes, measured on a CPU with models of
# 2 and 4 layers. Assumed of GPUs too, which wait for it.
_LAYER_SECONDS = 1.1e-3
_WARM_UP = 1  # turns that do not count


def alone_seconds(inputs: PlanInputs, flops: float) -> float:
    """Return seconds of speeds and samples on a rank of so many FLOPs a second."""
    models = [inputs.teacher, *[inputs.student] * inputs.evaluated_students]
    return sum(_speed_seconds(each, inputs, flops) for each in models) + sum(
        _samples_seconds(each, inputs, flops) for each in models
    )


def _speed_seconds(model: Shape, inputs: PlanInputs, flops: float) -> float:
    """Return a model's part of the measurement, which ends early where turns take too long."""
    speed, length = inputs.config.evaluate.speed, inputs.tokens.seq_len
    if speed is None:
        return 0.0
    models = 1 + inputs.evaluated_students
    batch = _forward(model, speed.sequences * length, length, flops)
    single = SINGLES * _forward(model, length, length, flops)
    if inputs.config.task == "causal-lm":
        single += speed.new_tokens * _forward(model, 1, length, flops)
    longest = speed.seconds / 2 / models
    turns = min(speed.turns, LATENCY_TURNS)
    return sum(
        _WARM_UP * each + min(count * each, longest + each)
        for count, each in ((speed.turns, batch), (turns, single))
    )


def _samples_seconds(model: Shape, inputs: PlanInputs, flops: float) -> float:
    """Return seconds of texts with the likeliest tokens, and of those with drawn ones."""
    samples, length = inputs.config.evaluate.samples, inputs.tokens.seq_len
    if samples is None or inputs.config.task != "causal-lm":
        return 0.0
    return 2 * samples.new_tokens * _forward(model, samples.prompts, length, flops)


def _forward(model: Shape, tokens: int, length: int, flops: float) -> float:
    """Return seconds of a forward of `tokens` tokens."""
    return max(model.layers * _LAYER_SECONDS, tokens * model.forward_flops(length) / flops)
