"""Release of a model's memory, whoever still refers to the model.

A worker runs one model after the other: student and baseline, a sharded teacher and what is made of
it. Engines and data parallelism register hooks that keep a model alive after its last use, some of
them where Python's garbage collection cannot see them. So its tensors are emptied where they are.
"""

import gc
from typing import Any

import torch

from kdscale.models.forward import unwrapped


def release(model: torch.nn.Module) -> None:
    """Free the weights and gradients of `model`, and the optimiser of an engine around it.

    Neither is of use afterwards. Tensors that a caller holds are freed with their last reference.
    On a GPU the memory goes back to the device, and the peak that is measured starts again.
    """
    parameters: list[Any] = list(model.parameters())
    if hasattr(model, "destroy"):
        _destroy(model)
    for parameter in parameters:
        parameter.grad = None
        # A shard of ZeRO-3, of the rank and, with hpZ, of the node.
        for name in ("ds_tensor", "ds_secondary_tensor"):
            if getattr(parameter, name, None) is not None:
                _empty(getattr(parameter, name))
        _empty(parameter)
    for buffer in unwrapped(model).buffers():
        _empty(buffer)
    _collect()


def _collect() -> None:
    """Collect garbage; on a GPU give memory that is free back, and measure the peak anew."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _destroy(engine: Any) -> None:
    """End a DeepSpeed engine: remove its hooks and drop what its optimiser holds.

    At stage 3 the optimiser outlives the engine's `destroy`, with its flat shards, their moments
    and the buffers that gradients are reduced in.
    """
    optimiser = engine.optimizer
    engine.destroy()
    if optimiser is None:
        return
    for holder in (getattr(optimiser, "optimizer", None), optimiser):
        if holder is not None:
            vars(holder).clear()


def _empty(tensor: torch.Tensor) -> None:
    tensor.data = tensor.data.new_empty(0)
