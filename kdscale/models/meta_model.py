"""A model without memory for its weights: names, shapes and roles of its tensors."""

import copy
import re
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.models.attention import best_on_gpu
from kdscale.models.load import build_model


class MetaModel:
    """The model of a transformers `config` on the meta device.

    A tensor that stands in two places has the name of the first: of a tied head, the embedding's.
    Not to be made while ZeRO-3 partitions what is built.
    """

    def __init__(self, config: Any) -> None:
        with torch.device("meta"):
            model = build_model(copy.deepcopy(config), seed=0)
        self.kind = type(model).__name__
        self.needs_mask = best_on_gpu(model, packs=True) is None
        """Whether packed rows need a mask [T, T] on a GPU, with every kernel of its attention."""
        parameters = dict(model.named_parameters())
        saved = model.state_dict()
        buffers = {name: b for name, b in model.named_buffers() if name in saved}
        self.shapes = {name: tuple(t.shape) for name, t in (parameters | buffers).items()}
        names = {id(parameter): name for name, parameter in parameters.items()}

        def parts(module: torch.nn.Module | None) -> dict[str, str]:
            own = {} if module is None else dict(module.named_parameters())
            return {part: names[id(parameter)] for part, parameter in own.items()}

        # By their parts, "weight" and "bias": the names differ between architectures.
        self.embedding = parts(model.get_input_embeddings())
        self.head = parts(model.get_output_embeddings())
        # Of the names of what is in a layer; None where the model has no list of layers.
        layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
        self.prefix = _layer_prefix(model, layers)
        self.settings = {name: _settings(module) for name, module in model.named_modules()}
        """By the name of each module its class and its plain settings: numbers, flags, texts."""

    @property
    def tied(self) -> bool:
        """True if the head's weight is the embedding's."""
        return self.head.get("weight") in self.embedding.values()

    def count_layers(self, prefix: str) -> int:
        """Return the number of layers with tensors under `prefix`."""
        return len({layer_of(name, prefix) for name in self.shapes} - {None})

    def group_of(self, name: str) -> str:
        """Return the role of a tensor: "embedding", "layer 3", "norms", "head" or "other"."""
        layer = layer_of(name, self.prefix)
        if layer is not None:
            return f"layer {layer}"
        if name in self.embedding.values():
            return "embedding"
        if name in self.head.values():
            return "head"
        return "norms" if "norm" in name or "ln_" in name else "other"


def layer_of(name: str, prefix: str | None) -> int | None:
    """Return the layer that the tensor `name` belongs to, None for one outside of all layers."""
    match = prefix and re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
    return int(match[1]) if match else None


def in_layer(name: str, prefix: str, layer: int) -> str:
    """Return the name of the same tensor in another layer."""
    return re.sub(rf"^{re.escape(prefix)}\.\d+\.", f"{prefix}.{layer}.", name)


def _layer_prefix(model: PreTrainedModel, count: int) -> str | None:
    """Return the name of the module list of the model's `count` layers, such as `model.layers`.

    None where there is none, or where layers are spread over several lists.
    """
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and "expert" not in name
    ]
    outer = [name for name in found if not name.startswith(f"{found[0]}.")]
    return outer[0] if len(outer) == 1 else None


def _settings(module: torch.nn.Module) -> dict[str, Any]:
    plain = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}
    return {"class": type(module).__name__} | plain
