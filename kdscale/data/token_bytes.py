"""Bytes of a tokenizer's ids, and the ids of bytes."""

from pathlib import Path
from typing import Any

import numpy as np


class TokenBytes:
    """The exact bytes of every id of a tokenizer."""

    vocab_size: int
    """The largest id + 1."""
    lengths: np.ndarray  # [V] int32: bytes of an id; 0 of special tokens
    is_special: np.ndarray  # [V] bool: special tokens, and numbers that no token has
    digest: str
    """SHA-256 of the file."""

    @classmethod
    def of(cls, tokenizer_json: bytes | Path) -> "TokenBytes":
        """Read a `tokenizer.json`, its content or its path.

        Raises KdscaleError where ids do not spell their text exactly.
        """
        raise NotImplementedError

    def spell(self, ids: np.ndarray) -> bytes:
        """Return the bytes of `ids` [n] one after another; special tokens have none."""
        raise NotImplementedError

    def encode(self, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all `texts`, flat int32, and how many each has, [n] int64.

        As continuations: no space is added in front, and no special token is read out of a text.
        Bytes that are no UTF-8 are spelled by tokens of single bytes. Safe to use from threads.
        """
        raise NotImplementedError

    def token(self, number: int) -> Any:
        """Return the text of an id as its tokenizer writes it."""
        raise NotImplementedError
