"""A small copy of a model, built for real, to check that its forward works.

Options that fit each other on paper may fail in the first forward, and only numbers show whether an
architecture gives a document in a sequence the logits that it gives alone, or gives attention
weights. Neither depends on the size of the vocabulary, and hardly on the number of layers or the
length of a window, so all are cut.
"""

import copy
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.config.lora import LoraConfig
from kdscale.errors import KdscaleError
from kdscale.models.attention_check import check_attention
from kdscale.models.chunked_classifier import CHUNKS
from kdscale.models.forward import compute_logits, model_task, target_logits
from kdscale.models.head import ModelWithHead
from kdscale.models.init.layers import keep_layers
from kdscale.models.load import build_model, count_parameters
from kdscale.models.lora import add_adapters
from kdscale.models.sequence_check import SequenceSpec, check_sequences

_MOST_PARAMETERS = 60_000_000
_IDS = 256
_POSITIONS = 8
_ROW_LENGTH = 96
_WINDOW = 16  # shorter than a document of such a row
_WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention", "window_size")
_CPU = torch.device("cpu")


class Probe:
    """Copy of the model of a transformers `config` with random weights.

    One that is too large even with a single layer is not built, and not checked.
    """

    def __init__(self, config: Any, what: str) -> None:
        """Cut the config; `what` names the model in messages."""
        self._what = what
        self._config: Any = _small(config)

    def check(self, *, packs: bool, seq_len: int, attention: bool = False) -> None:
        """Refuse a model whose forward fails or does not separate documents.

        Sequences of at most `seq_len` tokens, of several documents where the run `packs`, must give
        the logits of documents alone, and with `attention` the model must return attention weights.
        """
        if self._config is None:
            return
        model = build_model(copy.deepcopy(self._config), seed=0)
        chunks = getattr(self._config, CHUNKS, None)
        positions = _POSITIONS if chunks is None else chunks["length"]
        ids = torch.arange(positions)[None] % self._vocabulary
        try:
            with torch.no_grad():
                compute_logits(model.eval(), ids, torch.ones_like(ids), self._vocabulary)
        except Exception as error:  # whatever the architecture's arithmetic meets
            raise KdscaleError(
                f"The {self._what}, a {self._config.model_type!r}, fails in its first forward: "
                f"{type(error).__name__}: {error}",
                "Correct the `options` of the model, which contradict each other.",
            ) from error
        length = min(seq_len, _ROW_LENGTH) if chunks is None else 2 * positions
        classes = getattr(self._config, "num_labels", 0)
        outputs = classes if model_task(model) == "sequence-classification" else self._vocabulary
        kind = SequenceSpec(self._vocabulary, outputs, length, packs, micro_batch_size=3)
        check_sequences(model, partial(target_logits, model, vocab_size=outputs), kind)
        if attention:
            self._check_attention(model)

    def check_adapters(self, lora: LoraConfig) -> None:
        """Refuse target modules whose output the model's forward does not use.

        It may read their weights without calling them, or be a part that the task leaves out.
        """
        if self._config is None:
            return
        model = build_model(copy.deepcopy(self._config), seed=0)
        add_adapters(model, lora, seed=0)
        chunks = getattr(self._config, CHUNKS, None)
        positions = _POSITIONS if chunks is None else chunks["length"]
        ids = torch.arange(positions)[None] % self._vocabulary
        try:
            logits = compute_logits(model.eval(), ids, torch.ones_like(ids), self._vocabulary)
            logits.sum().backward()
        except Exception as error:  # whatever the architecture does with its linear maps
            raise KdscaleError(
                f"The {self._what}, a {self._config.model_type!r}, fails with adapters in its "
                f"linear maps: {type(error).__name__}: {error}",
                "Name fewer distill.student.lora.target_modules.",
            ) from error
        reached = {
            name.partition(".lora_B.")[0]: parameter.grad is not None
            for name, parameter in model.named_parameters()
            if ".lora_B." in name
        }
        idle = [name for name, is_reached in reached.items() if not is_reached]
        if idle:
            ends = {name.rpartition(".")[2] for name in idle}
            others = dict.fromkeys(name.rpartition(".")[2] for name in reached)
            raise KdscaleError(
                f"Adapters would stay as they start in {len(idle)} modules of a "
                f"{self._config.model_type!r}, such as {idle[0]!r}, whose output its forward does "
                "not use.",
                "Set distill.student.lora.target_modules to "
                f"[{', '.join(name for name in others if name not in ends)}].",
            )

    @property
    def _vocabulary(self) -> int:
        return min(_IDS, int(self._config.get_text_config().vocab_size))

    def _check_attention(self, model: PreTrainedModel) -> None:
        # The student's dropout counts in training, the teacher's does not.
        wrapped = ModelWithHead(model, self._vocabulary, gives_attention=True)
        check_attention(wrapped.train(self._what == "student"), _CPU)


def _small(config: Any) -> Any | None:
    """Return the config with few ids, short windows and as many first layers as fit, or None."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.vocab_size = min(text.vocab_size, _IDS)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        number = getattr(text, name, None)
        if isinstance(number, int) and number >= text.vocab_size:
            setattr(text, name, 0)
    for name in _WINDOWS:
        length = getattr(text, name, None)
        if isinstance(length, int) and length > _WINDOW:
            setattr(text, name, _WINDOW)
    if _parameters(small) <= _MOST_PARAMETERS:
        return small
    layers = getattr(text, "num_hidden_layers", 0)
    if layers < 2:
        return None
    two = _cut(small, 2)
    one = _cut(small, 1)
    each = max(1, _parameters(two) - _parameters(one))
    fit = 1 + int(_MOST_PARAMETERS - _parameters(one)) // each
    return None if fit < 1 else _cut(small, min(fit, layers))


def _cut(config: Any, layers: int) -> Any:
    cut = copy.deepcopy(config)
    keep_layers(cut.get_text_config(), list(range(layers)))
    return cut


def _parameters(config: Any) -> int:
    with torch.device("meta"):
        return count_parameters(build_model(copy.deepcopy(config), seed=0))
