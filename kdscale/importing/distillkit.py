"""Sets of arcee-ai/DistillKit: Parquet as its sampler writes them, or Arrow as its packer does.

Columns: `input_ids`, and of each position either `compressed_logprobs` and `bytepacked_indices`
(compressed), or `packed_indices`, `exact_values` and `coeffs` (legacy), or `token_ids` and
`top_values` (plain). A position is about the next token. The sampler drops vLLM's first entry, so
there is one entry less than tokens, the last token being there to be predicted only; the packer
cuts the tokens to the entries, numbers the documents of a row in `attention_mask`, and lets the
last position of each stand for a token that is not there.

A fitted tail is approximate. With one exact value and SmolLM2-135M on BBC news, the fit gave 1.4%
of the positions a mass above 1.5, up to 112. Values were sorted before they were fitted, so none is
taken to be above the last exact one; what is then above 1 (up to 3) is scaled to it, and counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdscale.errors import KdscaleError
from kdscale.importing.distillkit_values import Compression, LegacyCompression
from kdscale.importing.files import Record, matrix, records, vector
from kdscale.importing.sequence import Ragged, Sequence, sequence_from_lists

COMPRESSED = ("compressed_logprobs", "bytepacked_indices")
LEGACY = ("packed_indices", "exact_values", "coeffs")
PLAIN = ("token_ids", "top_values")

_TOKENS, _SEGMENTS, _LABELS = "input_ids", "attention_mask", "labels"
_IGNORED = -100


@dataclass(frozen=True)
class DistillKit:
    """A set with the columns `held`."""

    files: list[tuple[str, str]]
    held: tuple[str, ...]  # one of COMPRESSED, LEGACY, PLAIN
    compression: Compression | LegacyCompression | None = None

    @property
    def layout(self) -> str:
        """See `Reader.layout`."""
        names = {COMPRESSED: "compressed", LEGACY: "legacy", PLAIN: "plain"}
        return f"DistillKit, {names[self.held]}"

    @property
    def values(self) -> str:
        """See `Reader.values`. The legacy layout keeps logits less their mean."""
        return "logits" if self.held == LEGACY else "logprobs"

    @property
    def tolerance(self) -> float:
        """See `Reader.tolerance`."""
        return 0.02 if self.held == PLAIN else 2.0

    @property
    def options(self) -> dict[str, Any]:
        """See `Reader.options`."""
        found = self.compression
        return {"compression": None if found is None else found.model_dump(mode="json")}

    def sequences(self) -> Iterator[Sequence]:
        """See `Reader.sequences`."""
        names = (_TOKENS, _SEGMENTS, _LABELS, *self.held)
        for file in self.files:
            for where, record in records(file, names):
                yield self._sequence(where, record)

    def _sequence(self, where: str, record: Record) -> Sequence:
        tokens = vector(where, _TOKENS, record[_TOKENS]).astype(np.int64)
        ids, values = self._targets(where, record)
        if not 0 <= len(tokens) - len(ids.counts) <= 1:
            raise KdscaleError(
                f"{where}: {len(ids.counts)} entries for {len(tokens)} tokens.",
                "DistillKit writes an entry for each token, or for each but the last.",
            )
        segments = is_target = None
        if _SEGMENTS in record:
            segments = vector(where, _SEGMENTS, record[_SEGMENTS]).astype(np.int64)
        if _LABELS in record:
            is_target = vector(where, _LABELS, record[_LABELS]) != _IGNORED
        return sequence_from_lists(where, tokens, ids, values, 1, segments, is_target)

    def _targets(self, where: str, record: Record) -> tuple[Ragged, Ragged]:
        parts = [matrix(where, name, record[name]) for name in self.held]
        if self.held == PLAIN:
            return parts[0], parts[1]
        if self.held == COMPRESSED:
            assert isinstance(self.compression, Compression)
            widths = (self.compression.value_bytes, self.compression.id_bytes)
            packed = [
                _table(where, name, part, width).astype(np.uint8)
                for name, part, width in zip(self.held, parts, widths, strict=True)
            ]
            return _full(self.compression.ids(packed[1])), _full(self.compression.values(packed[0]))
        legacy = self.compression
        assert isinstance(legacy, LegacyCompression)
        terms = legacy.polynomial_degree + 1 + legacy.with_sqrt_term
        words = _table(where, self.held[0], parts[0], None)
        exact = _table(where, self.held[1], parts[1], legacy.exact_k)
        coefficients = _table(
            where, self.held[2], parts[2], terms if legacy.exact_k < legacy.k else 0
        )
        return _full(legacy.ids(words)), _full(legacy.values(exact, coefficients))


def _full(table: np.ndarray) -> Ragged:
    """Return [m, K] as lists of equal length."""
    return Ragged(table.reshape(-1), np.full(len(table), table.shape[1], np.int64))


def _table(where: str, name: str, lists: Ragged, width: int | None) -> np.ndarray:
    """Return lists of equal length as [m, width]; KdscaleError where they have another one."""
    if not len(lists.counts):
        return np.zeros((0, width or 0))
    if lists.width < 0 or (width is not None and lists.width != width):
        have: Any = sorted(set(lists.counts.tolist()))[:4]
        raise KdscaleError(
            f"{where}: the column {name!r} has {have} numbers a position"
            + (f", and the compression config gives {width}." if width is not None else "."),
            "Give the compression config that the set was captured with: --compression FILE.",
        )
    return lists.flat.reshape(len(lists.counts), lists.width)
