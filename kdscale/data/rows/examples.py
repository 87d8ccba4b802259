"""Builders of rows that bring their labels: texts to classify, or masked texts.

A row is one piece of one document between the tokenizer's start and end tokens. Pieces of a long
document share `overlap` tokens.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import xxhash

from kdscale.config.data import DataConfig, MaskingConfig
from kdscale.data.documents import TokenDocument
from kdscale.data.rows.pack import CHUNK_ROWS, RowCollector, RowCounts, empty_rows
from kdscale.data.tokenizer import TokenizerInfo
from kdscale.types import Rows

# Shares of the tokens to predict that become the mask, and another token.
_MASKED, _REPLACED = 0.8, 0.1


class _LabelledRows:
    """Base of the builders of rows that bring their labels."""

    def __init__(self, config: DataConfig, info: TokenizerInfo) -> None:
        self.counts = RowCounts()
        self._config = config
        self._info = info
        self._rows = RowCollector(self.counts, config.seq_len)

    def _cut_off(self, tokens: np.ndarray, length: int, pieces: int) -> None:
        """Count the tokens of a document beyond its first `pieces` pieces, each once."""
        last = (pieces - 1) * _step(length, self._config.overlap)
        lost = max(0, len(tokens) - 2 - (last + length - 2))
        self.counts.truncated += lost > 0
        self.counts.targets_truncated += lost


class ClassifiedRows(_LabelledRows):
    """Builder of rows with a class each; `counts` is complete after `build`."""

    def build(self, documents: Iterable[TokenDocument]) -> Iterator[Rows]:
        """Yield rows in chunks of about CHUNK_ROWS, in the documents' order.

        A row equal to an earlier one is dropped and counted.
        """
        chunks = self._config.chunks
        length = self._config.seq_len if chunks is None else chunks.length
        for document in documents:
            pieces = cut(document.tokens, length, self._config.overlap)
            self._count(document, len(pieces))
            if self._config.long_documents == "split":
                for piece in pieces:
                    self._add([piece], length, document, len(pieces))
            else:
                most = self._config.seq_len // length
                self._cut_off(document.tokens, length, most)
                self._add(pieces[:most], length, document, 1)
            yield from self._rows.drained(CHUNK_ROWS)
        yield from self._rows.drained(1)

    def _count(self, document: TokenDocument, pieces: int) -> None:
        self.counts.documents += 1
        self.counts.tokens += len(document.tokens)
        self.counts.split += pieces > 1 and self._config.long_documents != "truncate"

    def _add(
        self, pieces: list[np.ndarray], length: int, document: TokenDocument, share: int
    ) -> None:
        """Add one row of `pieces`, each in a chunk of `length` tokens and a segment."""
        rows = empty_rows(1, self._config.seq_len, self._info.pad_id, labelled=True)
        for number, piece in enumerate(pieces):
            start = number * length
            rows.input_ids[0, start : start + len(piece)] = piece
            rows.segment_ids[0, start : start + len(piece)] = number + 1
        assert rows.labels is not None
        rows.loss_mask[0, 0] = True
        rows.labels[0, 0] = document.label
        rows.byte_counts[0] = document.byte_count / share
        self._rows.add(rows)


class MaskedRows(_LabelledRows):
    """Builder of rows with some tokens masked; `counts` is complete after `build`.

    The masked positions follow from a row's tokens and the number of its copy.
    """

    def build(self, documents: Iterable[TokenDocument]) -> Iterator[Rows]:
        """Yield rows as ClassifiedRows.build; the copies of a row follow one another."""
        config = self._config
        for document in documents:
            pieces = cut(document.tokens, config.seq_len, config.overlap)
            self.counts.documents += 1
            self.counts.tokens += len(document.tokens)
            if config.long_documents == "truncate":
                self._cut_off(document.tokens, config.seq_len, 1)
                pieces = pieces[:1]
            self.counts.split += len(pieces) > 1
            bytes_per_token = document.byte_count / max(1, len(document.tokens) - 2)
            for piece in pieces:
                for copy in range(config.masking.copies):
                    self._add(piece, copy, bytes_per_token)
            yield from self._rows.drained(CHUNK_ROWS)
        yield from self._rows.drained(1)

    def _add(self, piece: np.ndarray, copy: int, bytes_per_token: float) -> None:
        if len(piece) < 3:
            return  # nothing between start and end
        rows = empty_rows(1, self._config.seq_len, self._info.pad_id, labelled=True)
        assert rows.labels is not None
        ids, targets = mask_tokens(piece, copy, self._config.masking, self._info)
        rows.input_ids[0, : len(piece)] = ids
        rows.segment_ids[0, : len(piece)] = 1
        rows.loss_mask[0, targets] = True
        rows.labels[0, targets] = piece[targets]
        rows.byte_counts[0] = len(targets) * bytes_per_token
        self._rows.add(rows)


def cut(tokens: np.ndarray, length: int, overlap: int) -> list[np.ndarray]:
    """Return the pieces [<= length] of a document [n], each between its start and end."""
    inner, room = tokens[1:-1], length - 2
    step = _step(length, overlap)
    starts = range(0, max(1, len(inner) - (room - step)), step)
    return [np.concatenate([tokens[:1], inner[at : at + room], tokens[-1:]]) for at in starts]


def _step(length: int, overlap: int) -> int:
    """Return the distance between the beginnings of pieces."""
    room = length - 2
    return room - min(overlap, room - 1)


def mask_tokens(
    piece: np.ndarray, copy: int, config: MaskingConfig, info: TokenizerInfo
) -> tuple[np.ndarray, np.ndarray]:
    """Return (the piece [n] as the model sees it, the positions to predict, in order).

    Start and end are never among them; at least one token is.
    """
    assert info.mask_id is not None
    seed = xxhash.xxh3_64_intdigest(np.ascontiguousarray(piece, "<i4").tobytes(), seed=copy)
    random = np.random.default_rng(seed)
    inner = len(piece) - 2
    count = max(1, round(config.share * inner))
    targets = np.sort(1 + random.choice(inner, count, replace=False))
    fate = random.random(count)
    others = random.integers(info.vocab_size, size=count)
    shown = np.where(fate < _MASKED, info.mask_id, piece[targets])
    shown = np.where((fate >= _MASKED) & (fate < _MASKED + _REPLACED), others, shown)
    ids = piece.copy()
    ids[targets] = shown
    return ids, targets
