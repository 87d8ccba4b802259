"""Frozen linear maps in four bits (NF4), for QLoRA: Dettmers et al., arXiv:2305.14314.

The only import of bitsandbytes, which computes on GPUs.
"""

import torch
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.models.lora import linear_maps


def quantise_linear_maps(model: PreTrainedModel) -> None:
    """Put the linear maps below the head of `model` into four bits, in place.

    They are quantised when the model moves to a GPU, by blocks of 64 whose scales are quantised
    too, and their products are made in bfloat16. Raises KdscaleError where bitsandbytes is missing,
    and as `check_quantisable` does, such as for GPT-2.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise KdscaleError(
            f"distill.student.lora.quantise needs the package bitsandbytes: {error}",
            "pip install 'kdscale[qlora]' on every machine.",
        ) from error
    check_quantisable(model)
    for name in linear_maps(model):
        linear = model.get_submodule(name)
        assert isinstance(linear, torch.nn.Linear)
        quantised = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            device="meta",
        )
        quantised.weight = Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4", module=quantised
        )
        quantised.bias = linear.bias
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, quantised)


def check_quantisable(model: PreTrainedModel) -> None:
    """Refuse a model with linear maps that are not torch's."""
    for name in linear_maps(model):
        linear = model.get_submodule(name)
        if not isinstance(linear, torch.nn.Linear):
            raise KdscaleError(
                f"distill.student.lora.quantise takes torch's linear maps, and {name!r} of a "
                f"{model.config.model_type!r} is a {type(linear).__name__}.",
                "Drop quantise for this architecture.",
            )
