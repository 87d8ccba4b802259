"""A model as numbers: its parameters and what a token costs, from its config without weights."""

import re
from dataclasses import dataclass
from math import prod
from typing import Any

from kdscale.models.meta_model import MetaModel

_GATED = re.compile(r"gate_proj|gate_up|\.w3\.")


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal language model; counts are of elements."""

    architecture: str
    parameters: int  # all, tied ones once
    layers: int
    hidden: int  # h
    queries: int  # q: query heads times the size of a head
    keys: int  # k: key heads times the size of a head
    neurons: int  # I: of the MLP; of a mixture of experts, those that a token meets
    vocabulary: int  # V: rows of the embedding, padding included
    matrices: int  # M: matrix elements in the layers that a token is multiplied with
    largest: int  # elements of the largest tensor
    windows: tuple[int | None, ...]  # of each layer, positions that attention looks back; None: all
    gated: bool  # whether the MLP has a gate (SwiGLU), two matrices into it instead of one
    normed_queries: bool  # whether queries and keys are normalised

    @property
    def head(self) -> int:
        """V h: elements of the map from hidden states to logits."""
        return self.vocabulary * self.hidden

    def attention_flops(self, seq_len: int) -> float:
        """Forward FLOPs a token of scores and of their product with the values:
        4 q sum over layers of min(T, window)."""
        seen = sum(seq_len if w is None else min(seq_len, w) for w in self.windows)
        return 4.0 * self.queries * seen

    def forward_flops(self, seq_len: int) -> float:
        """FLOPs a token: 2 (M + V h) + 4 q sum min(T, window).

        Two for each matrix element (Kaplan et al. 2020, arXiv:2001.08361, table 1); attention over
        the whole row, not half of it, as in PaLM (arXiv:2204.02311, appendix B). The embedding only
        looks up, norms and activations do not count.
        """
        return 2.0 * (self.matrices + self.head) + self.attention_flops(seq_len)

    def training_flops(self, seq_len: int, checkpointing: bool = False) -> float:
        """FLOPs a token of forward and backward: 3 times the forward's, and with activation
        checkpointing once more that of the layers."""
        forward = self.forward_flops(seq_len)
        again = forward - 2.0 * self.head if checkpointing else 0.0
        return 3.0 * forward + again


def shape_of(config: Any) -> Shape:
    """The shape of a transformers config's model, built without memory for its weights.

    Of a mixture of experts, their matrices count for the share of them that a token meets.
    """
    text = config.get_text_config()
    skeleton = MetaModel(config)
    layers, hidden = text.num_hidden_layers, text.hidden_size
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or hidden // heads
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 1
    active = getattr(text, "num_experts_per_tok", None) or 1
    neurons = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None)
    neurons = neurons or 4 * hidden
    if experts > 1:
        neurons = active * (getattr(text, "moe_intermediate_size", None) or neurons)
    matrices = 0.0
    names = []
    for name, shape in skeleton.shapes.items():
        if skeleton.group_of(name).startswith("layer ") and len(shape) > 1:
            matrices += prod(shape) * (active / experts if ".experts." in name else 1)
            names.append(name)
    return Shape(
        architecture=config.model_type,
        parameters=sum(map(prod, skeleton.shapes.values())),
        layers=layers,
        hidden=hidden,
        queries=heads * size,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * size,
        neurons=neurons,
        vocabulary=text.vocab_size,
        matrices=int(matrices),
        largest=max(map(prod, skeleton.shapes.values())),
        windows=_windows(text, layers),
        gated=any(_GATED.search(name) for name in names),
        normed_queries=any("q_norm" in name for name in skeleton.shapes),
    )


def _windows(text: Any, layers: int) -> tuple[int | None, ...]:
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
