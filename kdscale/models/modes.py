"""Switches of a built model that leave its weights alone: evaluation, dtype, dropout and the like.

Architectures call their dropouts by many names, keep them as modules or as plain numbers, and some
read the config in the forward. So all three are set, by the kind of their names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.distributed.rank import Rank
from kdscale.errors import KdscaleError

# Dropout of a classifier, of GPT-2's summary or of whole token positions is not that of a language
# model's units.
_OTHER = ("classifier", "summary", "positions")


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and its like off inside, and restore every module's mode afterwards.

    Module by module: an engine around a model keeps a flag that says nothing of the model's.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def computing_dtype(model: torch.nn.Module, worker: Rank) -> torch.autocast:
    """Return a context in which float32 weights of `model` are multiplied in the rank's dtype.

    As data parallelism trains them. It changes nothing for a model that is in that dtype.
    """
    casts = worker.dtype != torch.float32 and any(
        each.dtype == torch.float32 for each in model.parameters()
    )
    return torch.autocast(worker.device.type, worker.dtype, enabled=casts)


def set_dropout(model: PreTrainedModel, rate: float) -> None:
    """Set every dropout of `model` and of its config to `rate`, from 0 to 1, in place.

    Raises KdscaleError where the model has no dropout.
    """
    found = False
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
            found = True
        else:
            found |= _set_rates(module, rate)
    if not found:
        raise KdscaleError(
            f"The architecture {model.config.model_type!r} has no dropout to set to {rate:g}.",
            "Leave out training.dropout; against overfitting, set training.early_stopping with "
            "`keep: best`, or more weight_decay.",
        )
    for config in (model.config, model.config.get_text_config()):
        _set_rates(config, rate)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let the layers of `model` recompute their activations in the backward pass.

    Chen et al. 2016, arXiv:1604.06174. Not reentrant, so that it works inside of DDP and ZeRO, and
    dropout drops the same units again. Raises KdscaleError where the model cannot.
    """
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise KdscaleError(
            f"The architecture {model.config.model_type!r} cannot recompute activations: {error}",
            "Set training.activation_checkpointing to false, and lower micro_batch_size to save "
            "memory.",
        ) from error


def _set_rates(holder: Any, rate: float) -> bool:
    """Set the numbers of `holder` (a module or a config) that are dropout rates.

    Returns whether it has any.
    """
    names = [
        name
        for name, value in vars(holder).items()
        if ("dropout" in name or "pdrop" in name)
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and not any(other in name for other in _OTHER)
    ]
    for name in names:
        setattr(holder, name, rate)
    return bool(names)
