"""Build a model from a config, or load one from a Hugging Face folder."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kdscale.config.teacher import ModelConfig
from kdscale.errors import KdscaleError
from kdscale.models.adapter_folder import AdapterFolder
from kdscale.models.positions import POSITION_FIELDS, lost_positions
from kdscale.models.tasks import (
    CAUSAL_LM,
    TaskSpec,
    describe_task,
    model_class,
    name_class,
    set_task,
    task_of,
)

_LEAST_POSITIONS = 512
_ENDS = ("bos_token_id", "eos_token_id")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def make_config(
    model: ModelConfig,
    vocab_size: int,
    special_ids: Mapping[str, int | None],
    seq_len: int,
    task_spec: TaskSpec = CAUSAL_LM,
) -> Any:
    """Return the transformers config of `model` for a task, over a tokenizer of `vocab_size` ids.

    Raises KdscaleError for an architecture that transformers lacks, an option that it does not
    know, options that contradict each other, or a task that the architecture does not serve.
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
        **{name: special_ids.get(name) for name in _SPECIAL_IDS},
    }
    config_class = CONFIG_MAPPING[model.architecture]
    known = set(vars(config_class())) | set(config_class.attribute_map)
    positions = next((name for name in POSITION_FIELDS if name in known), "")
    chooses = {positions, config_class.attribute_map.get(positions)} & set(model.options)
    if positions and not chooses:
        options[positions] = max(seq_len, _LEAST_POSITIONS)
    unknown = sorted(set(model.options) - known)
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise KdscaleError(
            f"The architecture {model.architecture!r} has no option {names}.",
            "Correct the name; transformers would have ignored it silently.",
        )
    try:
        config = config_class(**{**options, **model.options})
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise KdscaleError(
            f"transformers refuses the options of {model.architecture!r}: {error}",
            "Correct `options` of the model.",
        ) from error
    if positions and not chooses:
        name_class(config, task_spec.task)
        setattr(config, positions, options[positions] + lost_positions(config))
    set_task(config, task_spec, seq_len)
    return config


def build_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """Return a model with random float32 weights: the same ones for the same seed."""
    torch.manual_seed(seed)
    try:
        return model_class(config).from_config(config, dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:
        what = describe_task(task_of(config))
        raise KdscaleError(
            f"transformers cannot build a {what} of {config.model_type!r}: {error}",
            "Choose an architecture that has such a head, and consistent options.",
        ) from error


def load_model(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    *,
    config: Any | None = None,
) -> PreTrainedModel:
    """Return the model in a Hugging Face folder or of a hub name, on the CPU.

    Only safetensors are read, and no code that comes with a model is run: where transformers has no
    class for it, KdscaleError. With `config`, in place of the folder's own, a model to be trained
    further: what the folder has no weights for starts at random. Of a folder of adapters, their
    base is returned, merged with them.
    """
    adapter = AdapterFolder.find(folder)
    if adapter is not None:
        return adapter.load(dtype)
    shape = config or load_config_of(folder, revision)
    try:
        model, found = model_class(shape).from_pretrained(
            str(folder),
            config=shape,
            dtype=dtype,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
        # Files that are damaged, or of another model, have better words than theirs.
        from kdscale.models.stored_tensors import check_weights  # it stands on this module

        check_weights(str(folder), revision, shape, trained_further=config is not None)
        if isinstance(error, OSError | ValueError):
            raise _cannot_load(str(folder), error) from error
        raise
    if config is None and found["missing_keys"]:
        raise lacks_weights(str(folder), shape, found["missing_keys"])
    loaded: PreTrainedModel = model
    if config is not None:
        _write_ends(loaded, shape)
    return loaded


def load_config_of(folder: str | Path, revision: str | None = None) -> Any:
    """Return the transformers config in a Hugging Face folder or of a hub name.

    Of a folder of adapters, that of their base.
    """
    if not (Path(folder).expanduser() / "config.json").is_file():
        adapter = AdapterFolder.find(folder)
        if adapter is not None:
            return adapter.load_config()
    try:
        return AutoConfig.from_pretrained(str(folder), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load(str(folder), error) from error


def fit_to_task(
    config: Any,
    vocab_size: int,
    special_ids: Mapping[str, int | None],
    seq_len: int,
    task_spec: TaskSpec,
    what: str,
) -> None:
    """Make the config of an existing model, in place, that of one to be trained further for a task.

    It learns the run's ends of texts, so that it will write them. `what` names the model in
    messages. Raises KdscaleError where it is quantised, or its
    vocabulary, architecture or length does not fit.
    """
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise KdscaleError(
            f"The {what} is quantised ({method}), and quantised weights cannot be trained.",
            "Load the model that it was made from, in bfloat16, float16 or float32.",
        )
    check_vocabulary(config, vocab_size, what)
    set_task(config, task_spec, seq_len)
    text, classifies = config.get_text_config(), task_spec.task == "sequence-classification"
    if task_spec.task == "causal-lm":
        for name in _ENDS:
            wanted = special_ids.get(name)
            if wanted is not None and wanted not in _ids(getattr(text, name, None)):
                setattr(text, name, wanted)
    if classifies and text.pad_token_id is None:
        # Classifiers over decoders find a sequence's end by it. A language model does not need one,
        # and the embedding of a padding id would not be trained: it may be the one that ends texts.
        text.pad_token_id = special_ids.get("pad_token_id")


def _write_ends(model: PreTrainedModel, config: Any) -> None:
    """Let a model write texts with the ends that its config has, where its own settings have none.

    They come from a file beside the weights, and may be those of another tokenizer's setup.
    """
    text, settings = config.get_text_config(), getattr(model, "generation_config", None)
    for name in _ENDS if settings is not None else ():
        wanted = getattr(text, name, None)
        if wanted is not None and not {*_ids(wanted)} & {*_ids(getattr(settings, name, None))}:
            setattr(settings, name, wanted)


def _ids(value: Any) -> list[int]:
    """Return the ids of a setting that holds one, several or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def check_vocabulary(config: Any, vocab_size: int, what: str) -> None:
    """Refuse a model whose embedding has fewer rows than the tokenizer has ids.

    More rows are padding: kdscale cuts logits to the tokenizer's `vocab_size` ids everywhere.
    `what` names the model in the message.
    """
    have = config.get_text_config().vocab_size
    if have < vocab_size:
        raise KdscaleError(
            f"The {what} has {have} embeddings, but the run's tokenizer has {vocab_size} ids.",
            "Use a model and the tokenizer that it was trained with, or give the model more "
            "embeddings (transformers' resize_token_embeddings).",
        )


def lacks_weights(source: str, config: Any, names: Iterable[str]) -> KdscaleError:
    """Return the error for a model at `source` whose files lack the tensors `names`."""
    what = describe_task(task_of(config))
    return KdscaleError(
        f"{source!r} is no {what}: it has no weights for {', '.join(sorted(names)[:3])}.",
        "Give a model of this task, or train it further with teacher.training.",
    )


def count_parameters(model: torch.nn.Module) -> int:
    """Return the parameters of the whole model, tied ones once; sharded ones count in full."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


def _cannot_load(folder: str, error: Exception) -> KdscaleError:
    return KdscaleError(
        f"No model can be loaded from {folder!r}: {error}",
        "Give a folder with config.json and *.safetensors, or a hub name within reach.",
    )
