"""Adapters of a student (LoRA), checked on a model without memory for its weights."""

import importlib.util

from transformers import PreTrainedModel

from kdscale.config import RunConfig
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import is_folder
from kdscale.models.lora import add_adapters
from kdscale.models.quantise import check_quantisable
from kdscale.preflight.context import Context
from kdscale.preflight.small_model import Probe
from kdscale.store import open_store


def check_lora(context: Context, model: PreTrainedModel, probe: Probe) -> None:
    """Refuse adapters that the student cannot have; `model` is the student, and gets them.

    Beside weights that start at random, beside modules that it lacks, or in four bits on a CPU.
    """
    lora, plan = context.config.distill.student.lora, context.student
    if lora is None:
        return
    assert plan is not None
    _check_place(context)
    random = {group.name: group.random for group in plan.provenance.groups if group.random}
    if random:
        groups = ", ".join(f"{count:,} of its {name}" for name, count in random.items())
        raise KdscaleError(
            f"distill.student.lora leaves the student's weights as they are, and some of them "
            f"start at random: {groups}.",
            "Drop distill.student.lora, or start from a model that has these weights.",
        )
    if lora.quantise != "none":
        _check_quantised(context.config, runs_here=not context.options.runs_elsewhere)
        check_quantisable(model)
    whole = lora.model_copy(update={"quantise": "none"})
    add_adapters(model, whole, seed=0)
    probe.check_adapters(whole)


def _check_place(context: Context) -> None:
    """Refuse adapters whose base is the very folder that they will be written to."""
    load, run = context.config.distill.student.load, context.run
    if load is None or not is_folder(load):
        return
    for name in run.student_names:
        if open_store(load).url == run.model_store(name).url:
            raise KdscaleError(
                f"distill.student.load {load!r} is where this run writes its {name}, and adapters "
                "need the model that they stand on.",
                "Give this run another `output`.",
            )


def _check_quantised(config: RunConfig, *, runs_here: bool) -> None:
    """Refuse weights in four bits where the workers or their ZeRO stage cannot have them."""
    distill = config.distill
    field = "distill.student.lora.quantise is nf4"
    if not distill.workers.gpus:
        raise KdscaleError(
            f"{field}, which needs GPUs, and distill.workers.gpus is 0.",
            "Set distill.workers.gpus to 1, or drop quantise: LoRA alone works on CPUs.",
        )
    if distill.training.zero.stage:
        raise KdscaleError(
            f"{field}, and distill.training.zero.stage is {distill.training.zero.stage}: ZeRO "
            "shards weights of 16 or 32 bits.",
            "Set distill.training.zero.stage to 0; the adapters' optimiser is small.",
        )
    if runs_here and importlib.util.find_spec("bitsandbytes") is None:
        raise KdscaleError(
            f"{field}, and the package bitsandbytes is not installed.",
            "pip install 'kdscale[qlora]'",
        )
