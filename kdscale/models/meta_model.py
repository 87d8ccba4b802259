"""A model without memory for its weights: what its tensors are called, and what they are."""

import copy
from typing import Any

import torch

from kdscale.models.init.layers import layer_of, layer_prefix, module_settings
from kdscale.models.load import build_model


class Skeleton:
    """Names, shapes and roles of the tensors of a transformers `config`'s model.

    A tensor that stands in two places has the name of the first: of a tied head, the embedding's.
    Not to be made while ZeRO-3 partitions what is built.
    """

    def __init__(self, config: Any) -> None:
        with torch.device("meta"):
            model = build_model(copy.deepcopy(config), seed=0)
        self.kind = type(model).__name__
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
        self.prefix = layer_prefix(model, layers)
        self.settings = module_settings(model)

    @property
    def tied(self) -> bool:
        """Whether the head's weight is the embedding's."""
        return self.head.get("weight") in self.embedding.values()

    def count_layers(self, prefix: str) -> int:
        """How many layers have tensors under `prefix`."""
        return len({layer_of(name, prefix) for name in self.shapes} - {None})

    def group_of(self, name: str) -> str:
        """What the tensor `name` is: "embedding", "layer 3", "norms", "head" or "other"."""
        layer = layer_of(name, self.prefix)
        if layer is not None:
            return f"layer {layer}"
        if name in self.embedding.values():
            return "embedding"
        if name in self.head.values():
            return "head"
        return "norms" if "norm" in name or "ln_" in name else "other"
