"""Kernels of attention: which one a model computes with, and the forms in which they take masks.

A dense mask [B, 1, T, T] grows with the square of the row, and rules out the kernels that skip what
a row's documents do not see of each other. Two kinds do: FlashAttention's for documents of any
lengths, and torch's flex_attention, which is compiled and keeps a mask of blocks.
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from kdscale.config.training import AttentionChoice
from kdscale.errors import KdscaleError

FLASH, FLEX = "flash_attention_2", "flex_attention"

# What transformers had chosen for a model that `auto` chose another kernel for.
_BEFORE: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def set_attention(
    model: PreTrainedModel, choice: AttentionChoice, device: torch.device, *, packs: bool
) -> PreTrainedModel:
    """Let `model` compute attention on `device` as `choice` says; return it.

    `packs` says whether rows may hold several documents. On CPUs a choice for GPUs counts as
    `auto`, which leaves transformers' own there. Raises KdscaleError where the architecture, its
    weights or this machine does not allow the choice.
    """
    on_gpu = device.type == "cuda"
    if choice == "auto" or (choice != "sdpa" and not on_gpu):
        found = best_on_gpu(model, packs) if on_gpu else None
        if found is not None:
            _BEFORE[model] = implementation(model)
            model.set_attn_implementation(found)
        return model
    check_supported(model, choice)
    if choice == FLASH:
        _check_flash(model)
    model.set_attn_implementation(choice)
    if implementation(model) != choice:
        raise _refused(model, choice, "transformers does not let it be set")
    return model


def best_on_gpu(model: PreTrainedModel, packs: bool) -> str | None:
    """Return the fastest kernel that is sure to fit, None for that of transformers.

    Rows of one document need no mask, and torch's own causal kernel is as fast as any.
    """
    if not packs and implementation(model) != "eager":
        return None
    if not _problem(model, FLASH) and is_flash_attn_2_available() and _is_half(model):
        return FLASH
    return FLEX if not _problem(model, FLEX) else None


def fall_back(model: torch.nn.Module) -> bool:
    """Give a model that `auto` chose a kernel for transformers' own; return whether there was one.

    A kernel may refuse what its architecture declares: a head's size, a mixture of dtypes.
    """
    before = _BEFORE.pop(model, None)
    if before is None or implementation(model) not in (FLASH, FLEX):
        return False
    model.set_attn_implementation(before)  # type: ignore[operator]
    return True


def check_supported(model: PreTrainedModel, choice: AttentionChoice) -> None:
    """Refuse a kernel that the architecture of `model` does not have. Raises KdscaleError."""
    if choice != "auto" and (problem := _problem(model, choice)):
        raise _refused(model, choice, problem)


def implementation(model: torch.nn.Module) -> str:
    """Return the name that transformers has for the kernel of a `model` of its own."""
    config: Any = model.config
    return str(config.get_text_config()._attn_implementation)


def additive(masks: Any, dtype: torch.dtype) -> Any:
    """Return boolean `masks`, one or by the kind of layer, as what is added to scores in `dtype`.

    torch's attention would make that of a boolean mask in every layer, and keep each for the
    backward pass. Other masks are returned as they are.
    """
    if isinstance(masks, Mapping):
        return {kind: additive(mask, dtype) for kind, mask in masks.items()}
    if not isinstance(masks, torch.Tensor) or masks.dtype != torch.bool:
        return masks
    return torch.zeros_like(masks, dtype=dtype).masked_fill_(~masks, -torch.inf)


def _problem(model: PreTrainedModel, name: str) -> str:
    """Return why an architecture does not take a kernel; empty where it says that it does."""
    config = model.config.get_text_config()
    if name == "sdpa":
        return "" if model._supports_sdpa else "transformers has no such kernel for it"
    if name == FLEX:
        if not model._supports_flex_attn:
            return "transformers has no such kernel for it"
        return "the kernel has no dropout of attention weights" if _drops_attention(config) else ""
    compatible = getattr(model, "_compatible_flash_implementations", None)
    if not model._supports_flash_attn or (compatible and name not in compatible):
        return "transformers has no such kernel for it"
    chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
    return "the kernel has no chunked attention" if chunked else ""


def _drops_attention(config: Any) -> bool:
    return any(
        isinstance(value, float) and value > 0 and "att" in name
        for name, value in vars(config).items()
        if "dropout" in name or "pdrop" in name
    )


def _is_half(model: torch.nn.Module) -> bool:
    return all(p.dtype.itemsize == 2 for p in model.parameters() if p.is_floating_point())


def _check_flash(model: PreTrainedModel) -> None:
    """Refuse FlashAttention where it is not installed, or weights have a precision it lacks."""
    if not is_flash_attn_2_available():
        raise _refused(model, FLASH, "flash-attn is not installed on this machine")
    if not _is_half(model):
        raise _refused(model, FLASH, "it takes bfloat16 weights, and without ZeRO they are float32")


def _refused(model: PreTrainedModel, choice: str, why: str) -> KdscaleError:
    return KdscaleError(
        f"This model ({model.config.model_type}) does not take attention {choice!r}: {why}.",
        "Set its `attention` to auto or another kernel.",
    )
