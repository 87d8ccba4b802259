"""Values of DistillKit's compressed layouts: bit-packed ids, exact values, a fitted tail.

A position of the present layout (`compressed_logprobs`, `bytepacked_indices`) is, byte by byte:
`exact_k` values as they are; the coefficients of a least-squares fit of the others over
t = 0 .. k - exact_k - 1 (with `normalize_t` over 0 .. 1), one a term (t^i, sqrt(t) or exp(t)); for
each bin of residuals its scale and its codes of `element_bits` bits. With `delta_encoding` all of
these are differences of successive values. Ids and codes are streams of bits, the highest bit
first, filled up to a byte.

The legacy layout (`packed_indices`, `exact_values`, `coeffs`) packs ids into words of 64 bits, the
lowest first, none across words, and fits powers of 1 / t (or t), t = 1 .. k - exact_k, to logits
that were centred at their mean.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator

from kdscale.config.base import Config
from kdscale.errors import KdscaleError

Dtype = Literal["float16", "bfloat16", "float32", "float64"]
Term = int | Literal["sqrt", "exp"]

_WORD_BITS = 64
_AT_ONCE = 256


class Bin(Config):
    """Residuals of consecutive values, in codes of equal width."""

    scale_dtype: Dtype
    element_bits: int = Field(gt=0, le=_WORD_BITS)
    num_elements: int = Field(gt=0)


class Compression(Config):
    """`logprob_compressor` of DistillKit, as `compression_config.yaml` has it."""

    d: int = Field(gt=0)
    k: int = Field(gt=0)
    exact_k: int = Field(ge=0)
    exact_dtype: Dtype = "float32"
    polynomial_terms: tuple[Term, ...] | None = None
    term_dtype: Dtype = "float32"
    residual_bins: tuple[Bin, ...] = ()
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "Compression":
        rest = self.k - self.exact_k
        if rest < 0 or sum(bin.num_elements for bin in self.residual_bins) > rest:
            raise ValueError("exact_k and the residual bins hold more than k values")
        if rest and not (self.polynomial_terms or self.residual_bins):
            raise ValueError("exact_k is below k, and nothing gives the other values")
        return self

    @property
    def id_bits(self) -> int:
        """Bits of an id."""
        return max(1, (self.d - 1).bit_length())

    @property
    def value_bytes(self) -> int:
        """Bytes of a position's values."""
        terms = len(self.polynomial_terms or ()) * _size(self.term_dtype)
        bins = sum(
            _size(b.scale_dtype) + math.ceil(b.num_elements * b.element_bits / 8)
            for b in self.residual_bins
        )
        return self.exact_k * _size(self.exact_dtype) + terms + bins

    @property
    def id_bytes(self) -> int:
        """Bytes of a position's ids."""
        return math.ceil(self.k * self.id_bits / 8)

    def ids(self, packed: np.ndarray) -> np.ndarray:
        """[m, id_bytes] uint8 -> [m, k] int64."""
        return _unpack_bits(packed, self.id_bits, self.k)

    def values(self, packed: np.ndarray) -> np.ndarray:
        """[m, value_bytes] uint8 -> [m, k] float64."""
        reader = _Bytes(packed)
        exact = reader.numbers(self.exact_k, self.exact_dtype)
        tail = np.zeros((len(packed), self.k - self.exact_k))
        if self.polynomial_terms:
            coefficients = reader.numbers(len(self.polynomial_terms), self.term_dtype)
            tail += coefficients @ self._terms().T
        first = 0
        for bin in self.residual_bins:
            scale = reader.numbers(1, bin.scale_dtype)
            codes = reader.bits(bin.element_bits, bin.num_elements)
            tail[:, first : first + bin.num_elements] += scale * _levels(codes, bin.element_bits)
            first += bin.num_elements
        found = np.concatenate([exact, tail], axis=1)
        return _falling(found.cumsum(axis=1) if self.delta_encoding else found, self.exact_k)

    def _terms(self) -> np.ndarray:
        """Return the terms at each t, [k - exact_k, terms] float64."""
        count = self.k - self.exact_k
        t = np.linspace(0, 1, count) if self.normalize_t else np.arange(count, dtype=np.float64)
        named = {"sqrt": np.sqrt, "exp": np.exp}
        terms = self.polynomial_terms or ()
        return np.stack([t**i if isinstance(i, int) else named[i](t) for i in terms], axis=-1)


class LegacyCompression(Config):
    """`legacy_logit_compression` of DistillKit."""

    k: int = Field(gt=0)
    exact_k: int = Field(ge=0)
    polynomial_degree: int = Field(ge=0)
    vocab_size: int = Field(gt=0)
    invert_polynomial: bool = True
    with_sqrt_term: bool = False
    term_dtype: Dtype = "float32"

    def ids(self, words: np.ndarray) -> np.ndarray:
        """[m, words] uint64 -> [m, k] int64."""
        bits = max(1, (self.vocab_size - 1).bit_length())
        shifts = np.arange(_WORD_BITS // bits, dtype=np.uint64) * np.uint64(bits)
        mask = np.uint64((1 << bits) - 1)
        found = (words.astype(np.uint64)[:, :, None] >> shifts) & mask
        return found.reshape(len(words), -1)[:, : self.k].astype(np.int64)

    def values(self, exact: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """[m, exact_k] and [m, terms] -> [m, k] float64."""
        t = np.arange(self.k - self.exact_k, dtype=np.float64) + 1
        sign = -1 if self.invert_polynomial else 1
        terms = [t ** (sign * i) for i in range(self.polynomial_degree + 1)]
        terms += [np.sqrt(t)] if self.with_sqrt_term else []
        tail = coefficients.astype(np.float64) @ np.stack(terms)
        return _falling(np.concatenate([exact.astype(np.float64), tail], axis=1), self.exact_k)


def parse_compression(found: dict[str, Any], where: str) -> Compression | LegacyCompression:
    """Return the compression that `found` describes. KdscaleError where it describes none."""
    for name in ("logprob_compressor", "legacy_logit_compression"):
        found = found.get(name) or found
    kind = LegacyCompression if "polynomial_degree" in found else Compression
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "it"
        raise KdscaleError(
            f"{where} is no compression config of DistillKit: {name}: {first['msg']}.",
            "Give the file that was written beside the set (compression_config.yaml), or the "
            "`logprob_compressor` of the config that trains from it.",
        ) from error


def _falling(values: np.ndarray, exact_k: int) -> np.ndarray:
    """Return values [m, k] of which no fitted one is above the last exact one.

    They were sorted before the fit, which overshoots where the distribution falls steeply.
    """
    if 0 < exact_k < values.shape[1]:
        np.minimum(values[:, exact_k:], values[:, exact_k - 1 : exact_k], out=values[:, exact_k:])
    return values


class _Bytes:
    """Fields of positions, one after the other: [m, bytes] uint8."""

    def __init__(self, packed: np.ndarray) -> None:
        self._packed, self._at = packed, 0

    def numbers(self, count: int, dtype: Dtype) -> np.ndarray:
        """Take [m, count] numbers as float64."""
        held = self._take(count * _size(dtype))
        typed = torch.from_numpy(held.copy()).view(getattr(torch, dtype))
        return typed.reshape(len(held), count).double().numpy()

    def bits(self, bits: int, count: int) -> np.ndarray:
        """Take [m, count] codes of `bits` bits."""
        return _unpack_bits(self._take(math.ceil(count * bits / 8)), bits, count)

    def _take(self, size: int) -> np.ndarray:
        self._at += size
        return self._packed[:, self._at - size : self._at]


def _unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """[m, bytes] uint8 -> [m, count] int64, some positions at a time: a bit takes 8 bytes."""
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    found = np.empty((len(packed), count), np.int64)
    for first in range(0, len(packed), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        stream = np.unpackbits(packed[part], axis=1)[:, : count * bits]
        found[part] = stream.reshape(-1, count, bits).astype(np.int64) @ weights
    return found


def _levels(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return the multiples of the scale that codes stand for; one bit is -1 or 1."""
    if bits == 1:
        return codes * 2.0 - 1.0
    return (codes - (1 << (bits - 1))).astype(np.float64)


def _size(dtype: Dtype) -> int:
    return {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]
