"""Teacher under ZeRO-3: spread over ranks, gathered layer by layer in the forward.

Over all ranks, or over those of a group (shard_groups.py). The only import of deepspeed.
transformers partitions every parameter as it is built while an `HfDeepSpeedConfig` is alive, so
that no rank ever holds the whole model. That object is global: it must be gone before another model
(a student) is built in the same process, or that one would be partitioned too.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.config.training import TeacherGroup, WorkersConfig, ZeroConfig
from kdscale.distributed.groups import RankGroup, make_group
from kdscale.distributed.rank import Rank
from kdscale.models.load import load_model
from kdscale.models.meta_model import MetaModel
from kdscale.models.shard_groups import compare_within, constructed_over, copy_shards

# DeepSpeed's defaults, elements.
_LEAST_PREFETCH, _LEAST_LIVE, _SMALL_PARAMETER = 50_000_000, 1_000_000_000, 100_000
_LARGE_MODEL = 100_000_000


def teacher_group(
    choice: TeacherGroup, workers: WorkersConfig, worker: Rank, shape: Callable[[], Any]
) -> RankGroup:
    """Return the ranks that hold a sharded teacher together with this one. Collective.

    `shape` returns its transformers config. Raises KdscaleError where the ranks do not make such
    groups.
    """

    def weights() -> int:
        return sum(map(prod, MetaModel(shape()).shapes.values())) * worker.dtype.itemsize

    return make_group(choice, worker, weights, workers.collective_timeout_seconds)


def zero3_config(worker: Rank, offload: str) -> dict[str, Any]:
    """Return the DeepSpeed config of a model without optimiser, sharded over ranks."""
    zero: dict[str, Any] = {"stage": 3}
    if offload == "cpu":
        zero["offload_param"] = {"device": "cpu", "pin_memory": worker.device.type == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": worker.dtype == torch.bfloat16},
    }


def gather_limits(model: torch.nn.Module) -> dict[str, int]:
    """Return DeepSpeed's limits, in elements, for forwards of a partitioned `model`.

    One layer is gathered ahead while another computes, and a third is being released: DeepSpeed's
    own limits are less than that for layers of more than 5e7 and 3e8 elements, so that most of a
    large layer would be waited for. What is released is not used again in a forward. Small
    parameters (norms, biases) stay whole, which saves a third of the collectives; but for a small
    model, which would hardly be sharded at all.
    """
    total, layer = _elements(model), largest_layer(model)
    return {
        "stage3_prefetch_bucket_size": max(_LEAST_PREFETCH, layer),
        "stage3_max_live_parameters": max(_LEAST_LIVE, 3 * layer),
        "stage3_max_reuse_distance": 0,
        "stage3_param_persistence_threshold": _SMALL_PARAMETER if total >= _LARGE_MODEL else 0,
    }


def largest_layer(model: torch.nn.Module) -> int:
    """Return the elements of the largest layer of a model: of the entries of its module lists."""
    lists = (each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
    return max((_elements(layer) for layers in lists for layer in layers), default=0)


def _elements(module: torch.nn.Module) -> int:
    """Return the elements of the whole parameters of `module`."""
    return sum(getattr(each, "ds_numel", each.numel()) for each in module.parameters())


@contextmanager
def partitioned_construction(
    config: dict[str, Any], group: RankGroup | None = None
) -> Iterator[None]:
    """Inside, let transformers partition every model it builds, if `config` asks for stage 3.

    Over the ranks of `group`, or all.
    """
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    if config["zero_optimization"]["stage"] != 3:
        yield
        return
    zero = _deepspeed().zero
    part = group if group is not None and group.is_part else None
    if part is not None:
        # It would take what a model's constructor sets from rank 0, which is in one group alone.
        config["zero_optimization"]["override_module_apply"] = False
    alive = HfDeepSpeedConfig(config)
    try:
        with nullcontext() if part is None else constructed_over(part, zero):
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
    group: RankGroup | None = None,
    wrap: Callable[[PreTrainedModel], torch.nn.Module] = lambda model: model,
) -> torch.nn.Module:
    """Return the teacher in a folder or of a hub name, placed as `place_teacher` does."""
    return place_teacher(
        lambda: load_model(folder, worker.dtype, revision), worker, zero, group=group, wrap=wrap
    )


def place_teacher(
    load: Callable[[], PreTrainedModel],
    worker: Rank,
    zero: ZeroConfig,
    *,
    group: RankGroup | None = None,
    wrap: Callable[[PreTrainedModel], torch.nn.Module] = lambda model: model,
) -> torch.nn.Module:
    """Return the model that `load` gives in evaluation mode, inside of what `wrap` makes of it.

    Whole at stage 0. At stage 3 sharded over the ranks of `group`, of all ranks if not given;
    collective over all. Its forwards are collective in the group.
    """
    if zero.stage == 0:
        return wrap(load().to(worker.device)).eval()
    group = group or RankGroup.of_all(worker)
    config = zero3_config(worker, zero.offload)
    with partitioned_construction(config, group):
        model = load()
    if group.is_part:
        copy_shards(model, group, worker.device)
    config["zero_optimization"] |= gather_limits(model)
    engine = initialize_engine(wrap(model), config)
    if group.is_part:
        compare_within(engine, group)
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
