"""Encoding chunk by chunk: as many positions at a time as a CPU's cache holds.

What a codec says is small: what it keeps of a chunk (`select`), and which bytes that becomes
(`pack`). Packing is done once for all chunks, because it is many small operations.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from kdscale.cache.codecs.base import Encoded
from kdscale.cache.codecs.distribution import Distribution, Scratch, distribution, valid
from kdscale.cache.codecs.vocab_blocks import BLOCK
from kdscale.errors import KdscaleError

# Elements of one working tensor; there are about three. Those of a CPU's thread should stay in its
# share of the last-level cache; on a GPU larger pieces keep the launches few.
_CHUNK_ELEMENTS_THREAD = 1 << 20
_CHUNK_ELEMENTS_GPU = 1 << 28


class ChunkedCodec(ABC):
    """The half of a `Codec` that encodes."""

    vocab_size: int

    @property
    @abstractmethod
    def streams(self) -> int:
        """See `Codec.streams`."""

    @abstractmethod
    def select(self, p: Distribution, uniforms: Tensor) -> tuple[Tensor, ...]:
        """Return what to keep of C positions, given uniforms [C, streams]: tensors [C, ...]."""

    @abstractmethod
    def pack(self, *selected: Tensor) -> Tensor:
        """Return the payload [P, bytes_per_position] uint8 of what `select` gave for all chunks."""

    @property
    def blocks_read(self) -> int:
        """Blocks of a position that `select` takes out: they have to fit the memory too."""
        return 0

    @property
    def largest_read(self) -> int:
        """Count of the most probable ids that `select` takes."""
        return 1

    def select_by_kernel(
        self, logits: Tensor, uniforms: Tensor, temperature: float
    ) -> tuple[Tensor, ...] | None:
        """Return entropy, log_norm and what `select` gives of [P, V] logits, if a kernel does it.

        None where there is no such kernel.
        """
        return None

    @torch.no_grad()
    def encode(
        self,
        logits: Tensor,
        uniforms: Tensor,
        *,
        temperature: float = 1.0,
    ) -> Encoded:
        """See `Codec.encode`."""
        if logits.ndim != 2 or logits.shape[1] < self.vocab_size:
            raise KdscaleError(
                f"The teacher's logits have the shape {tuple(logits.shape)}, the codec needs "
                f"[positions, {self.vocab_size} ids or more].",
                "Use the tokenizer that belongs to the teacher.",
            )
        assert uniforms.shape == (len(logits), self.streams)
        own = logits[:, : self.vocab_size]
        found = self.select_by_kernel(own, uniforms, temperature)
        if found is None:
            found = self._select_by_chunks(own, uniforms, temperature)
        entropy, log_norm, *selected = found
        if bad := int((~valid(log_norm)).sum()):
            raise KdscaleError(
                f"The teacher's logits hold NaN or infinity at {bad} of {len(logits)} positions.",
                "Run the teacher in bfloat16 or float32: float16 overflows in many models.",
            )
        return Encoded(self.pack(*selected), entropy, log_norm)

    def _select_by_chunks(
        self, logits: Tensor, uniforms: Tensor, temperature: float
    ) -> tuple[Tensor, ...]:
        """Return entropy, log_norm and what `select` gives, [P, ...], of [P, V] logits."""
        elements = max(self.vocab_size, self.blocks_read * BLOCK)
        size = max(1, _chunk_elements(logits.device) // elements)
        scratch = Scratch(min(size, len(logits)), self.vocab_size, logits.device)
        parts = []
        for some_logits, some_uniforms in zip(
            logits.split(size), uniforms.split(size), strict=True
        ):
            p = distribution(some_logits, temperature, scratch, self.largest_read)
            parts.append((p.entropy, p.log_norm, *self.select(p, some_uniforms)))
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def _chunk_elements(device: torch.device) -> int:
    if device.type == "cpu":
        return _CHUNK_ELEMENTS_THREAD * torch.get_num_threads()
    return _CHUNK_ELEMENTS_GPU
