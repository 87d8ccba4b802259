"""A causal language model from our config, or from a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def make_config(
    model: ModelConfig, vocab_size: int, special_ids: Mapping[str, int | None], row_length: int
) -> Any:
    """The transformers config of `model` over a tokenizer of `vocab_size` ids.

    Raises KdscaleError for an architecture that transformers lacks, an option that it does not
    know, or options that contradict each other.
    """
    if model.architecture not in CONFIG_MAPPING:
        raise KdscaleError(
            f"transformers has no architecture {model.architecture!r}.",
            "Give a model_type of transformers such as llama, qwen3 or gpt2.",
        )
    multiple = model.pad_vocab_to_multiple_of
    padded = -(-vocab_size // multiple) * multiple
    options: dict[str, Any] = {
        "vocab_size": padded,
        "max_position_embeddings": max(row_length, 512),
        **{name: special_ids.get(name) for name in _SPECIAL_IDS},
    }
    config_class = CONFIG_MAPPING[model.architecture]
    known = set(vars(config_class())) | set(config_class.attribute_map)
    unknown = sorted(set(model.options) - known)
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise KdscaleError(
            f"The architecture {model.architecture!r} has no option {names}.",
            "Correct the name; transformers would have ignored it silently.",
        )
    try:
        return config_class(**{**options, **model.options})
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise KdscaleError(
            f"transformers refuses the options of {model.architecture!r}: {error}",
            "Correct `options` of the model.",
        ) from error


def build_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A model with random float32 weights: the same ones for the same seed."""
    torch.manual_seed(seed)
    try:
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    except ValueError as error:
        raise KdscaleError(
            f"transformers cannot build a causal language model of {config.model_type!r}: {error}",
            "Choose an architecture with a causal language-model head and consistent options.",
        ) from error


def load_model(
    folder: str | Path, dtype: torch.dtype = torch.float32, revision: str | None = None
) -> PreTrainedModel:
    """The causal language model in a Hugging Face folder or of a hub name, on the CPU.

    Only safetensors are read, and no code that comes with a model is run: where transformers has no
    class for it, KdscaleError.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(str(folder), error) from error


def load_config_of(folder: str | Path, revision: str | None = None) -> Any:
    """The transformers config in a Hugging Face folder or of a hub name."""
    try:
        return AutoConfig.from_pretrained(str(folder), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load(str(folder), error) from error


def check_vocabulary(config: Any, vocab_size: int, what: str) -> None:
    """Refuse a model whose embedding has fewer rows than the tokenizer has ids.

    More rows are padding: kdscale cuts logits to the tokenizer's `vocab_size` ids everywhere.
    """
    have = config.get_text_config().vocab_size
    if have < vocab_size:
        raise KdscaleError(
            f"The {what} has {have} embeddings, but its tokenizer has {vocab_size} ids.",
            "Use the tokenizer that the model was trained with.",
        )


def count_parameters(model: torch.nn.Module) -> int:
    """Parameters of the whole model, tied ones once; sharded ones count in full."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


def _cannot_load(folder: str, error: Exception) -> KdscaleError:
    return KdscaleError(
        f"No causal language model can be loaded from {folder!r}: {error}",
        "Give a folder with config.json and *.safetensors, or a hub name within reach.",
    )
