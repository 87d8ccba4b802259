"""Architectures whose width can be cut: where their parts are, and the axes of each tensor.

Llama-like models have RMSNorms before attention and MLP and one after the last layer; BERT-like
ones LayerNorms behind both. Either way their outputs show how active the channels are that all
layers share.
"""

from dataclasses import dataclass
from typing import Any

from kdscale.errors import KdscaleError

Axes = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Names of modules: of the list of layers in the base model, and in each layer."""

    layers: str
    norms: tuple[str, str]
    attention_output: str  # its inputs are the heads' outputs
    mlp_output: str  # its inputs are the neurons
    final_norm: str | None
    """In the base model; None where the last layer's second norm is the end."""

    has_head_dim: bool
    """True if the size of a head is a number of its own, not the width over the heads."""

    axes: dict[str, Axes]
    """Axes of a module's weight, a name for each dimension, by the end of the module's name; a bias
    has the first of them."""


_LLAMA = Family(
    layers="layers",
    norms=("input_layernorm", "post_attention_layernorm"),
    attention_output="self_attn.o_proj",
    mlp_output="mlp.down_proj",
    final_norm="norm",
    has_head_dim=True,
    axes={
        **dict.fromkeys(("embed_tokens", "lm_head"), ("vocabulary", "hidden")),
        "score": ("classes", "hidden"),
        **dict.fromkeys(("norm", "input_layernorm", "post_attention_layernorm"), ("hidden",)),
        "q_proj": ("queries", "hidden"),
        **dict.fromkeys(("k_proj", "v_proj"), ("keys", "hidden")),
        "o_proj": ("hidden", "queries"),
        **dict.fromkeys(("q_norm", "k_norm"), ("head",)),
        **dict.fromkeys(("gate_proj", "up_proj"), ("neurons", "hidden")),
        "down_proj": ("hidden", "neurons"),
    },
)
_BERT = Family(
    layers="encoder.layer",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    attention_output="attention.output.dense",
    mlp_output="output.dense",
    final_norm=None,
    has_head_dim=False,
    axes={
        "word_embeddings": ("vocabulary", "hidden"),
        "position_embeddings": ("positions", "hidden"),
        "token_type_embeddings": ("types", "hidden"),
        **dict.fromkeys(("LayerNorm", "lm_head.layer_norm"), ("hidden",)),
        "query": ("queries", "hidden"),
        **dict.fromkeys(("key", "value"), ("keys", "hidden")),
        "attention.output.dense": ("hidden", "queries"),
        "intermediate.dense": ("neurons", "hidden"),
        "output.dense": ("hidden", "neurons"),
        **dict.fromkeys(("pooler.dense", "classifier.dense"), ("hidden", "hidden")),
        **dict.fromkeys(("predictions.transform.dense", "lm_head.dense"), ("hidden", "hidden")),
        **dict.fromkeys(
            ("classifier", "classifier.out_proj", "chunk_score"), ("classes", "hidden")
        ),
        **dict.fromkeys(("predictions.decoder", "lm_head.decoder"), ("vocabulary", "hidden")),
        **dict.fromkeys(("predictions", "lm_head"), ("vocabulary",)),
    },
)

# Their norms and MLPs have no constant that depends on the width, as Gemma's scaled embeddings
# have, and their projections are separate, as Phi's are not.
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), _LLAMA),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
}


def family_of(config: Any, name: str = "teacher") -> Family:
    """Return the family of a transformers config.

    Raises KdscaleError, in which the model is called `name`, if it cannot be cut.
    """
    if config.model_type not in FAMILIES:
        raise KdscaleError(
            f"A {name} of the architecture {config.model_type!r} cannot be made narrower.",
            f"Leave out `width`; it works for {', '.join(FAMILIES)}.",
        )
    return FAMILIES[config.model_type]


def axes_at(family: Family, name: str) -> Axes:
    """Return the axes of the tensor `name`; () if it is not known.

    The longest end of its name decides.
    """
    *path, kind = name.split(".")
    for start in range(len(path)):
        axes = family.axes.get(".".join(path[start:]))
        if axes is not None:
            return axes[: 1 if kind == "bias" else None]
    return ()
