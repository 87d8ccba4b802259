"""Teacher under ZeRO-3: spread over all ranks, gathered layer by layer in the forward.

The only import of deepspeed. transformers partitions every parameter as it is built while an
`HfDeepSpeedConfig` is alive, so that no rank ever holds the whole model. That object is global: it
must be gone before another model (a student) is built in the same process, or that one would be
partitioned too.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.config.training import ZeroConfig
from kdscale.distributed.rank import Rank
from kdscale.models.load import load_model


def zero3_config(worker: Rank, offload: str) -> dict[str, Any]:
    """Return the DeepSpeed config of a model without optimiser, sharded over all ranks."""
    zero: dict[str, Any] = {"stage": 3}
    if offload == "cpu":
        zero["offload_param"] = {"device": "cpu", "pin_memory": worker.device.type == "cuda"}
    # Small parameters stay whole on every rank by default (threshold 1e5 elements), which would
    # make a small teacher hardly sharded at all; norms and biases are still cheap enough to gather.
    zero["stage3_param_persistence_threshold"] = 0
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": worker.dtype == torch.bfloat16},
    }


@contextmanager
def partitioned_construction(config: dict[str, Any]) -> Iterator[None]:
    """Inside, let transformers partition every model it builds, if `config` asks for stage 3."""
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    if config["zero_optimization"]["stage"] != 3:
        yield
        return
    _deepspeed()
    alive = HfDeepSpeedConfig(config)
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del alive


def load_teacher(
    folder: str | Path,
    worker: Rank,
    zero: ZeroConfig,
    revision: str | None = None,
    *,
    wrap: Callable[[PreTrainedModel], torch.nn.Module] = lambda model: model,
) -> torch.nn.Module:
    """Return the teacher in a folder or of a hub name, placed as `place_teacher` does."""
    return place_teacher(
        lambda: load_model(folder, worker.dtype, revision), worker, zero, wrap=wrap
    )


def place_teacher(
    load: Callable[[], PreTrainedModel],
    worker: Rank,
    zero: ZeroConfig,
    *,
    wrap: Callable[[PreTrainedModel], torch.nn.Module] = lambda model: model,
) -> torch.nn.Module:
    """Return the model that `load` gives in evaluation mode, inside of what `wrap` makes of it.

    Sharded at stage 3 and whole at stage 0.
    """
    if zero.stage == 0:
        return wrap(load().to(worker.device)).eval()
    config = zero3_config(worker, zero.offload)
    with partitioned_construction(config):
        model = load()
    engine = initialize_engine(wrap(model), config)
    engine.eval()
    gc.collect()
    return engine


def initialize_engine(
    model: torch.nn.Module,
    config: dict[str, Any],
    parameter_groups: list[dict[str, Any]] | None = None,
) -> Any:
    """Return the DeepSpeed engine around `model`; with `parameter_groups` it has an optimiser."""
    engine, *_ = _deepspeed().initialize(
        model=model, model_parameters=parameter_groups, config=config
    )
    return engine


def parameters_held(model: torch.nn.Module) -> tuple[int, int]:
    """Return (parameters this rank holds now, parameters of the whole model)."""
    held = total = 0
    parameter: Any
    for parameter in model.parameters():
        if hasattr(parameter, "ds_tensor"):
            # A gathered parameter is here in full besides its own shard.
            held += parameter.ds_tensor.numel() + parameter.data.numel() * (parameter.numel() > 0)
            total += parameter.ds_numel
        else:
            held += parameter.numel()
            total += parameter.numel()
    return held, total


def _deepspeed() -> Any:
    """Import deepspeed with an operator switched off that it would compile at its first collective.

    That is a shared-memory all-reduce for inference on CPUs, a minute on every new machine. Neither
    ZeRO nor kdscale calls it.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
