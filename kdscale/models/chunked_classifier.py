"""Classifier of long documents: it scores a sequence chunk by chunk and combines the scores.

The class is made over any sequence classifier of transformers. Its folder is one of that classifier
with `kdscale_chunks` in the config, so that transformers loads it too, for texts of one chunk.
Chunks that are empty are not computed.

An export carries this file beside the weights, so it imports torch and transformers only.
"""

from functools import cache
from typing import Any

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

CHUNKS = "kdscale_chunks"


def set_chunks(config: Any, length: int, pooling: str) -> None:
    """Make `config`, in place, that of a classifier of sequences in chunks of `length` tokens.

    `pooling` (mean, max or attention) combines the chunks' scores.
    """
    setattr(config, CHUNKS, {"length": length, "pooling": pooling})


def is_chunked(config: Any) -> bool:
    """Return whether a transformers config asks for such a class."""
    return getattr(config, CHUNKS, None) is not None


def row_multiple(config: Any) -> int:
    """Return the number that sequence lengths are a multiple of: a chunk's length, or 1."""
    return int(getattr(config, CHUNKS)["length"]) if is_chunked(config) else 1


def computed_tokens(config: Any, used: torch.Tensor) -> torch.Tensor:
    """Return which of the tokens that the model's layers see are `used` ([B, T] bool), [N, L] bool.

    A classifier of chunks sees the N chunks that are not empty; all other models see [B, T].
    """
    if not is_chunked(config):
        return used
    chunks = used.unflatten(1, (-1, getattr(config, CHUNKS)["length"]))
    return chunks[chunks.any(dim=2)]


@cache
def chunked_class(plain: Any) -> Any:
    """Return the class over `plain`, a sequence classifier of transformers."""

    class Chunked(plain):
        """Classifier of ids and mask [B, chunks * length]; its logits are [B, classes]."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            settings = getattr(config, CHUNKS)
            self._length, self._pooling = settings["length"], settings["pooling"]
            if self._pooling == "attention":
                self.chunk_score = torch.nn.Linear(config.hidden_size, 1)
                # Where it starts, all chunks count alike.
                torch.nn.init.zeros_(self.chunk_score.weight)
                torch.nn.init.zeros_(self.chunk_score.bias)

        @classmethod
        def from_config(cls, config: Any, dtype: torch.dtype, **_: Any) -> Any:
            """Return a model from a config, as transformers' auto classes do."""
            return cls._from_config(config, dtype=dtype)

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **flags: Any
        ) -> SequenceClassifierOutput:
            ids = input_ids.unflatten(1, (-1, self._length))
            mask = attention_mask.unflatten(1, (-1, self._length))
            present = mask.any(dim=2)
            attends = self._pooling == "attention"
            found = super().forward(
                input_ids=ids[present],
                attention_mask=mask[present],
                output_hidden_states=attends,
                **flags,
            )
            scores = None
            if attends:
                scores = self.chunk_score(_token_mean(found.hidden_states[-1], mask[present]))
            return SequenceClassifierOutput(
                logits=pool_chunks(found.logits, present, self._pooling, scores)
            )

    Chunked.__name__ = plain.__name__  # what `architectures` of a saved config says
    return Chunked


def pool_chunks(
    logits: torch.Tensor,
    present: torch.Tensor,
    pooling: str,
    scores: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return [B, classes] from the logits [N, classes] of the chunks that are `present`.

    That is [B, chunks] bool. The result is their mean, their largest, or their mean weighted by the
    softmax of `scores` [N, 1] over the chunks of a sequence.
    """
    shape = (*present.shape, logits.shape[-1])
    if pooling == "max":
        spread = logits.new_full(shape, -torch.inf).masked_scatter(present[..., None], logits)
        return spread.amax(dim=1)
    spread = logits.new_zeros(shape).masked_scatter(present[..., None], logits)
    if scores is None:
        return spread.sum(dim=1) / present.sum(dim=1, keepdim=True)
    weights = scores.new_full(shape[:2], -torch.inf).masked_scatter(present, scores[:, 0])
    return (weights.softmax(dim=1)[..., None] * spread).sum(dim=1)


def _token_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of `hidden` [N, L, D] where `mask` [N, L] is not 0, [N, D]."""
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
