"""Compare the logits of documents in sequences with those of each document alone.

Whether a model keeps packed documents apart, minds its sliding windows, leaves padding alone and
draws no noise hangs on its architecture, its options and its attention kernel. What goes wrong
there makes no error but wrong targets, so it is tried at the start of every capture, training and
evaluation: on the model at hand, in its precision, over sequences of the run's own length.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kdscale.errors import KdscaleError, last_line
from kdscale.models.attention import fall_back
from kdscale.models.chunked_classifier import row_multiple
from kdscale.models.forward import RowTensors, intercept_lm_head, model_task, unwrapped
from kdscale.models.tasks import describe_task

_log = logging.getLogger(__name__)

LogitsAt = Callable[[RowTensors], torch.Tensor]
"""The logits [P, V] that a run computes at the P positions of sequences that count, in order."""

_SHORT = 8  # tokens of the last packed document
_FIRST, _LAST = 16, 48  # positions of a document that are compared
_TOLERANCE = 3e-4
# Of bfloat16 and float16: SmolLM2-135M has 0.03 from rounding alone, and deeper models have more.
_HALF_TOLERANCE = 0.15
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "sep_token_id")
# What transformers raises for inputs that an architecture does not take.
_REFUSALS = (
    *(AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError),
    *(TypeError, ValueError),
)


@dataclass(frozen=True)
class SequenceSpec:
    """The sequences of a run."""

    vocab_size: int  # ids of the tokenizer
    outputs: int  # logits of a position: the ids, or the classes
    seq_len: int
    packs: bool  # whether a sequence may hold several documents
    micro_batch_size: int = 1


@torch.no_grad()
def check_sequences(model: torch.nn.Module, logits_at: LogitsAt, spec: SequenceSpec) -> None:
    """Refuse a model for which a document in a sequence has other logits than alone.

    `model`, of transformers or an engine around one, is run on a document alone as transformers
    runs it; `logits_at` is what the run computes for sequences. The model stays in the mode that it
    is in. Where `attention: auto` chose a kernel that fails here, it gets transformers' own.
    Collective where it is sharded. Raises KdscaleError.
    """
    try:
        _check(model, logits_at, spec)
    except (KdscaleError, *_REFUSALS) as error:
        if _is_of_the_machine(error) or not fall_back(unwrapped(model)):
            raise
        _log.warning("the attention kernel that was chosen fails: %s", last_line(error))
        _check(model, logits_at, spec)


def _check(model: torch.nn.Module, logits_at: LogitsAt, spec: SequenceSpec) -> None:
    trial = _Trial(model, logits_at, spec)
    rows = [[document] for document in trial.single]
    found = trial.in_rows(rows)
    trial.refuse(
        trial.error(trial.in_rows(rows), found),
        "gives other logits when the same sequences are run again",
        "Dropout or noise stays on in it: set the dropouts in its config to 0, or choose another "
        "model.",
    )
    alone = [trial.alone(document) for document in trial.single]
    if trial.is_causal:
        count = min(_FIRST, len(alone[1]))
        trial.refuse(
            trial.error([trial.alone(trial.otherwise)[:count]], [alone[0][:count]]),
            "predicts a token from tokens behind it",
            "A causal language model looks back only: load one, or set is_decoder: true in its "
            "config where the architecture has both.",
        )
    trial.refuse(
        trial.error(found, alone),
        f"gives a document other logits in a sequence of {spec.seq_len} tokens than alone",
        "Set data.seq_len to what the model was trained with, or choose another architecture.",
    )
    if spec.packs and trial.packed:
        _check_packed(trial, rows, alone)


def _check_packed(
    trial: "_Trial", rows: list[list["_Document"]], alone: list[torch.Tensor]
) -> None:
    """Check a sequence of several documents in a micro-batch with `rows`."""
    rows = [trial.packed, *rows]
    alone = [*map(trial.alone, trial.packed), *alone]
    try:
        found = trial.in_rows(rows)
    except _REFUSALS as error:
        if _is_of_the_machine(error):
            raise
        raise KdscaleError(
            f"{trial.name} cannot keep packed documents apart: {error}", "Set data.pack to false."
        ) from error
    trial.refuse(
        trial.error(found, alone),
        "lets packed documents see each other, or loses its attention window where they are packed",
        "Set data.pack to false.",
    )


def _is_of_the_machine(error: Exception) -> bool:
    """Return whether an error says nothing of the architecture."""
    from kdscale.distributed.failures import is_retryable  # which needs the store

    return isinstance(error, torch.OutOfMemoryError) or is_retryable(error)


@dataclass(frozen=True)
class _Document:
    ids: torch.Tensor  # [L] int64
    start: int = 0  # its place in the sequence

    @property
    def compared(self) -> torch.Tensor:
        """Positions that are compared, [L] bool."""
        index = torch.arange(len(self.ids), device=self.ids.device)
        return (index < _FIRST) | (index >= len(self.ids) - _LAST)


class _Trial:
    """Documents of random tokens, and the logits of a model for them."""

    def __init__(self, model: torch.nn.Module, logits_at: LogitsAt, spec: SequenceSpec) -> None:
        self._model, self._bare = model, unwrapped(model)
        self._logits_at, self._spec = logits_at, spec
        parameter = next(p for p in model.parameters() if p.is_floating_point())
        autocast = torch.is_autocast_enabled(parameter.device.type)
        self._is_half = autocast or parameter.dtype.itemsize == 2
        task = model_task(model)
        self.is_causal = task == "causal-lm"
        self._classifies = task == "sequence-classification"
        self.name = f"This {describe_task(task)} ({self._bare.config.model_type})"
        length, multiple = spec.seq_len, row_multiple(self._bare.config)
        ids = self._random_ids(2 * length).to(parameter.device)
        half = max(multiple, length // 2 // multiple * multiple)
        self.single = [_Document(ids[:length]), _Document(ids[:half])]
        """One as long as a sequence, and its first half."""
        self.otherwise = _Document(torch.cat([ids[:half], ids[-(length - half) :]]))
        """Return sequences of the same length with another second half."""
        self.packed = _cut(ids[length:])
        """Those of one sequence."""

    def alone(self, document: _Document) -> torch.Tensor:
        """Compute the logits [P, outputs] of a document by itself, as transformers does."""
        ids, outputs, where = document.ids[None], self._spec.outputs, document.compared
        inputs: dict[str, Any] = {"input_ids": ids}
        if self.is_causal:
            inputs["use_cache"] = False
        else:
            inputs["attention_mask"] = torch.ones_like(ids)
        if self._classifies:
            logits: torch.Tensor = self._model(**inputs).logits
            return logits[:, :outputs]
        with intercept_lm_head(self._bare, ids.shape, lambda hidden: hidden[:, where]) as given:
            logits = self._model(**inputs).logits[0, :, :outputs]
        return logits if given else logits[where]

    def in_rows(self, rows: Sequence[Sequence[_Document]]) -> list[torch.Tensor]:
        """Compute the logits [P, outputs] of each document of sequences as the run does."""
        found: list[torch.Tensor] = []
        size = self._spec.micro_batch_size
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            documents = [document for row in part for document in row]
            counts = [1 if self._classifies else int(d.compared.sum()) for d in documents]
            found += self._logits_at(self._tensors(part)).split(counts)
        return found

    def error(self, found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
        """Return the worst document's error.

        That is the distance of two logit vectors over the length of the expected one, both without
        their mean, of which a softmax takes no notice. In float32 it is the error of the document's
        worst position. In half precision rounding may turn one position to another expert: there it
        is the largest median of a few positions.
        """
        worst = 0.0
        for pair in zip(found, expected, strict=True):
            one, other = (logits.float() - logits.float().mean(-1, keepdim=True) for logits in pair)
            errors = (one - other).norm(dim=-1) / other.norm(dim=-1).clamp_min(1e-30)
            if self._is_half:
                errors = torch.stack([part.median() for part in errors.split(_FIRST)])
            worst = max(worst, errors.nan_to_num(nan=torch.inf).max().item())
        return worst

    def refuse(self, error: float, problem: str, fix: str) -> None:
        """Raise KdscaleError where `error` is more than rounding."""
        if error > (_HALF_TOLERANCE if self._is_half else _TOLERANCE):
            raise KdscaleError(f"{self.name} {problem}: they differ by {error:.1%}.", fix)

    def _tensors(self, rows: Sequence[Sequence[_Document]]) -> RowTensors:
        shape = (len(rows), self._spec.seq_len)
        ids = self.single[0].ids.new_zeros(shape)
        segments, counted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for number, row in enumerate(rows):
            for place, document in enumerate(row):
                here = slice(document.start, document.start + len(document.ids))
                ids[number, here] = document.ids
                segments[number, here] = place + 1
                counted[number, here] = document.compared
        if self._classifies:
            counted[:, 1:] = False
        padding = getattr(self._bare.config.get_text_config(), "pad_token_id", None)
        ids = torch.where(segments == 0, padding or 0, ids)
        return RowTensors(ids, segments, counted, torch.full_like(ids, -1))

    def _random_ids(self, count: int) -> torch.Tensor:
        """Return [count] int64, none of them one that the architecture treats differently."""
        config = self._bare.config.get_text_config()
        special = {getattr(config, name, None) for name in _SPECIAL}
        ordinary = [i for i in range(min(self._spec.vocab_size, 1024)) if i not in special]
        generator = torch.Generator().manual_seed(0)
        return torch.tensor(ordinary)[torch.randint(len(ordinary), (count,), generator=generator)]


def _cut(ids: torch.Tensor) -> list[_Document]:
    """Cut the tokens of a sequence [T] into documents.

    A short one, one longer than any window that matters in such sequences, a very short one, and a
    rest that is padding. A sequence of less than 4 tokens has none.
    """
    if len(ids) < 4:
        return []
    first = max(1, len(ids) // 8)
    last = min(_SHORT, first)
    second = len(ids) - first - last - len(ids) // 16
    parts = ids.split([first, second, last, len(ids) // 16])[:3]
    return [
        _Document(part, start)
        for part, start in zip(parts, (0, first, first + second), strict=True)
    ]
