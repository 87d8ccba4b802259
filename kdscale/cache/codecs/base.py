"""Protocol of codecs: logits in, bytes and statistics out, and bytes back to a target.

A codec turns a position's logits into a fixed number of bytes and those bytes into a target for the
student. It is pure tensor code without state: it runs where the logits are, and equal bytes a
position make a row of the cache a fixed-width column. Entropy and normaliser come out of the same
pass, because a second softmax would cost as much as all the rest.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from kdscale.types import Targets


@dataclass(frozen=True)
class Encoded:
    """P encoded positions. All statistics are of softmax(logits / temperature)."""

    payload: Tensor  # [P, bytes_per_position] uint8
    entropy: Tensor  # [P] float32, nats
    log_norm: Tensor  # [P] float32: logsumexp(logits / temperature)


class Codec(Protocol):
    """One way to keep p, the teacher's distribution of the next token."""

    @property
    def bytes_per_position(self) -> int:
        """Bytes of one encoded position."""
        ...

    @property
    def streams(self) -> int:
        """Uniform numbers that a position draws."""
        ...

    def encode(
        self,
        logits: Tensor,
        uniforms: Tensor,
        *,
        temperature: float = 1.0,
    ) -> Encoded:
        """Encode P positions.

        logits: [P, V], raw, of any float type; -inf where an id has no probability. Columns past
        the codec's vocabulary (the padding of an embedding) are left out.
        uniforms: [P, streams] float64 in [0, 1), from `kdscale.cache.codecs.noise`.
        The result is on the device of the logits. It depends on nothing but a position's own logits
        and uniforms. KdscaleError for logits with too few columns or without a distribution (NaN,
        +inf, all -inf).
        """
        ...

    def decode(self, payload: Tensor) -> Targets:
        """[..., bytes_per_position] uint8 -> targets with the same leading dimensions."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind, parameters and vocabulary size; `open_codec` gives the same codec back."""
        ...


class SampledIds(Protocol):
    """A payload that ends in K ids, most of which may come in any order.

    What is to be stored can then sort them, which takes fewer bits.
    """

    @property
    def prefix_bytes(self) -> int:
        """Bytes of a position before its ids."""
        ...

    @property
    def k(self) -> int:
        """Ids of a position."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids there are, which `id_bytes` of the payload's ids follow from."""
        ...

    def ordered_ids(self, payload: Tensor) -> Tensor:
        """Count the leading ids whose place has a meaning: [P, bytes] uint8 -> [P] int64.

        The others are a multiset.
        """
        ...
