"""LoRA: a model's linear maps with adapters beside them, which alone are trained (by peft).

Hu et al., arXiv:2106.09685. Only the maps in the body of a model get adapters: its head is part of
the loss, and that of a tied model is its embedding too.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kdscale.config.lora import ALL_LINEAR, BY_ARCHITECTURE, LoraConfig
from kdscale.errors import KdscaleError
from kdscale.models.adapter_folder import BASE, WEIGHTS, quiet_peft
from kdscale.models.load import count_parameters
from kdscale.models.tasks import task_of

# The name that peft gives an adapter that has none.
_NAME = "default"

# What peft's own wrapper of a model puts before the names of its modules.
_PEFT_PREFIX = "base_model.model."
_FORWARDS = (torch.nn.Linear.forward, Conv1D.forward)
# A model shows this many of its modules in a message.
_SHOWN = 12


@dataclass(frozen=True)
class Base:
    """The model that adapters were trained beside, as others are to find it."""

    source: str
    """A folder, a store's URL or a hub name; of a copy, the place where it will be."""

    revision: str | None = None
    model: PreTrainedModel | None = None
    """To be copied beside the adapters, where no other place has it."""


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model."""

    peft_config: Any
    trained: int  # parameters

    def save(
        self, folder: Path, model: PreTrainedModel, values: Mapping[str, torch.Tensor], base: Base
    ) -> None:
        """Write the adapters of `model` to `folder`, as peft loads them, with the base's config.

        `values` are its trained parameters, whole, by their names in it. A base without a place of
        its own is copied to `base/` in the folder.
        """
        config = copy.deepcopy(self.peft_config)
        config.inference_mode = True
        config.target_modules = sorted(config.target_modules)
        config.base_model_name_or_path, config.revision = base.source, base.revision
        model.config.save_pretrained(folder)
        config.save_pretrained(str(folder))
        state = {
            f"{_PEFT_PREFIX}{name.replace(f'.{_NAME}.', '.')}": value.cpu().contiguous()
            for name, value in values.items()
        }
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        if base.model is not None:
            base.model.save_pretrained(folder / BASE)


def add_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> Adapters:
    """Put adapters into `model`, in place: the same ones for the same seed on every rank.

    All other parameters are frozen. Works on whole models, on ones that ZeRO-3 has partitioned and
    on ones without memory. Raises KdscaleError for target modules that the model has not, or that
    cannot have adapters, and where a package is missing.
    """
    import peft  # it takes a second

    names = target_modules(model, config)
    if config.quantise == "nf4":
        from kdscale.models.quantise import quantise_linear_maps

        quantise_linear_maps(model)
        model.is_loaded_in_4bit = True  # which peft asks for
    found = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=names,
        task_type="CAUSAL_LM" if task_of(model.config) == "causal-lm" else None,
    )
    torch.manual_seed(seed)
    try:
        with quiet_peft():
            peft.inject_adapter_in_model(found, model)
    except (ValueError, TypeError, AttributeError) as error:
        raise KdscaleError(
            f"peft cannot put adapters into a {model.config.model_type!r}: {error}",
            "Name other distill.student.lora.target_modules, or leave out distill.student.lora.",
        ) from error
    vars(model).pop("is_loaded_in_4bit", None)
    return Adapters(found, sum(p.numel() for p in model.parameters() if p.requires_grad))


def target_modules(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Return the names, or ends of names, of the modules of `model` to have adapters.

    Raises KdscaleError for one that matches nothing, or something that is no linear map of the
    body.
    """
    linear = linear_maps(model)
    if config.target_modules == ALL_LINEAR:
        return _shortened(model, linear)
    if config.target_modules == BY_ARCHITECTURE:
        return _by_architecture(model)
    for name in config.target_modules:
        matched = [each for each, _ in model.named_modules() if matches(each, name)]
        others = [each for each in matched if each not in linear]
        if not matched or others:
            what = f"matches {others[0]!r}, which is none" if others else "matches nothing"
            raise KdscaleError(
                f"distill.student.lora.target_modules names linear maps below the head, and "
                f"{name!r} {what} in a {model.config.model_type!r}. There are "
                f"{_listed(linear)}.",
                "Name some of these, or set target_modules to all-linear.",
            )
    return list(dict.fromkeys(config.target_modules))


def linear_maps(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear maps in the body of `model`, in its order."""
    head = model.get_output_embeddings()
    classifies = task_of(model.config) == "sequence-classification"
    body = f"{model.base_model_prefix}." if classifies else ""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        # What multiplies in another way, such as by groups, is no place for a product of A and B.
        and type(module).forward in _FORWARDS
        and module is not head
        and name.startswith(body)
    ]


def matches(module: str, name: str) -> bool:
    """Return whether peft takes `module` for the target `name`."""
    return module == name or module.endswith(f".{name}")


def published_parameters(model: torch.nn.Module) -> int:
    """Return the parameters of `model` without those of adapters, which merging takes up."""
    adapters = sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for name, parameter in model.named_parameters()
        if f".{_NAME}." in name and ".lora_" in name
    )
    return count_parameters(model) - adapters


def _by_architecture(model: PreTrainedModel) -> list[str]:
    from peft.utils import constants

    known = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    kind = model.config.get_text_config().model_type
    found = known.get(model.config.model_type, known.get(kind))
    if not isinstance(found, list):
        raise KdscaleError(
            f"peft names no target modules for the architecture {kind!r}. There are "
            f"{_listed(linear_maps(model))}.",
            "Name some of these as distill.student.lora.target_modules, or set it to all-linear.",
        )
    return list(found)


def _shortened(model: PreTrainedModel, linear: list[str]) -> list[str]:
    """Return the last parts of the names `linear`, where they match nothing else in `model`."""
    ends = _ends(linear)
    chosen = set(linear)
    is_unique = all(
        name in chosen
        for name, _ in model.named_modules()
        if any(matches(name, end) for end in ends)
    )
    return ends if is_unique else linear


def _ends(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _listed(names: list[str]) -> str:
    ends = _ends(names)
    return ", ".join(ends[:_SHOWN]) + (" and others" if len(ends) > _SHOWN else "")
