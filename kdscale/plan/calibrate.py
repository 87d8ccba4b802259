"""Calibrate a plan: a worker group like the run's, started once, measures what it computes at.

About a minute. What is measured is kept beside the output and for the user's other plans.
"""

import copy
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import read_marker
from kdscale.models.init.layers import keep_layers
from kdscale.plan.calibration import Calibration, keep
from kdscale.plan.inputs import Setting
from kdscale.plan.measure import RESULT, AtHand, MeasureJob
from kdscale.plan.shape import shape_of
from kdscale.plan.timing import rate
from kdscale.run.artifacts import RunArtifacts
from kdscale.store import open_store
from kdscale.workers.group import run_workers
from kdscale.workers.progress import stage_progress
from kdscale.workers.ray_session import ray_session

_BUDGET_SECONDS = 5.0
# Forwards measured at the least, each of which is not to take longer than the budget.
_FEWEST_LAYERS = 2


def calibrate(setting: Setting, say: Callable[[str], None] = print) -> Calibration:
    """Measure on the cluster that Ray connects to, and keep the result. Needs a store to write to.

    Raises KdscaleError where the plan is for GPUs and the config's workers have none, or the other
    way round, where the output cannot be written, or where the cluster is too small.
    """
    config = setting.config
    workers = config.cache.capture.workers
    if setting.is_gpu != (workers.gpus > 0):
        have = f"{workers.gpus:g} GPUs a worker (cache.capture.workers.gpus)"
        raise KdscaleError(
            f"A calibration measures what the config's workers run on, {have}, and not "
            f"{setting.hardware.name}.",
            "Calibrate on the hardware that is planned for, or plan without --calibrate.",
        )
    if config.task != "causal-lm":
        raise KdscaleError(
            f"A calibration measures causal language models, and the run's task is {config.task}.",
            "Plan without --calibrate.",
        )
    output = open_store(config.output)
    output.check()
    teacher = _affordable(setting)
    job = MeasureJob(
        config=config,
        output=output,
        teacher=teacher,
        student=setting.student_config,
        vocab_size=setting.tokens.vocab_size,
        budget=_BUDGET_SECONDS,
        at_hand=_at_hand(setting) if teacher is setting.teacher_config else None,
    )
    say(f"calibrating with {workers.count} workers, about a minute")
    with ray_session(), stage_progress("calibrate") as progress:
        begun = time.perf_counter()
        run_workers(job, workers, progress)
        whole = time.perf_counter() - begun
    found = json.loads(output.get(RESULT))
    output.delete(RESULT)
    result = _rates(found, whole, teacher, setting)
    keep(result, output)
    return result


def _affordable(setting: Setting) -> Any:
    """The teacher's config, cut to as many layers as a forward can have within the budget at the
    hardware's assumed speed; all of them where that is enough."""
    plain = setting.with_measured(None)
    capture = setting.config.cache.capture
    positions = capture.micro_batch_size * setting.tokens.seq_len
    speed = rate(plain, capture.workers, training=False)
    seconds = positions * setting.teacher.forward_flops(setting.tokens.seq_len) / speed
    layers = setting.teacher.layers
    kept = max(_FEWEST_LAYERS, min(layers, int(layers * _BUDGET_SECONDS / seconds)))
    if kept >= layers:
        return setting.teacher_config
    config = copy.deepcopy(setting.teacher_config)
    keep_layers(config.get_text_config(), list(range(kept)))
    return config


def _at_hand(setting: Setting) -> AtHand | None:
    """The run's own teacher and rows, where both stages are complete."""
    if not setting.tokens.prepared:
        return None
    run = RunArtifacts(setting.config)
    teacher = read_marker(run.output.child("teacher"))
    if teacher is None or teacher.fingerprint != run.teacher_fingerprint:
        return None
    return AtHand(teacher, run.prepared_store)


def _rates(found: dict[str, Any], whole: float, teacher: Any, setting: Setting) -> Calibration:
    """From seconds of the work that was measured to rates of a rank."""
    config, length = setting.config, setting.tokens.seq_len
    capture, training = config.cache.capture, config.distill.training
    measured = shape_of(teacher)
    positions = capture.micro_batch_size * length

    def step_flops(shape: Any, training: Any) -> float:
        rows = -(-training.global_batch_size // capture.workers.count)
        return float(
            rows * length * shape.training_flops(length, training.activation_checkpointing)
        )

    teacher_flops = None
    if "teacher_step" in found:
        teacher_flops = step_flops(measured, config.teacher.training) / found["teacher_step"]
    return Calibration(
        hardware=setting.hardware.name,
        device=found["device"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        workers=capture.workers.count,
        forward_flops=positions * measured.forward_flops(length) / found["forward"],
        training_flops=step_flops(setting.student, training) / found["step"],
        teacher_flops=teacher_flops,
        encode_tokens=positions / found["encode"],
        put_bytes=found["put_bytes"],
        get_bytes=found["get_bytes"],
        latency_seconds=found["latency_seconds"],
        start_up_seconds=whole - found["loop"],
        base_bytes=found["base_bytes"],
        codec=config.cache.codec if "at_rest" in found else None,
        payload_at_rest=found.get("at_rest"),
    )
