"""Alignment of two tokenizers: a student's sequences over the bytes of its teacher's.

`pair` sorts the ids of both into classes that both can tell apart, `aligner` makes a batch of the
student's sequences and says where the teacher's distribution is their target, `coverage` counts
that by kind of text. The bytes of ids are those of `kdscale.data.token_bytes`, the loss that of
`kdscale.losses.classes`.
"""

from kdscale.data.token_bytes import TokenBytes
from kdscale.distill.alignment.aligner import AlignedRows, Aligner
from kdscale.distill.alignment.coverage import Coverage
from kdscale.distill.alignment.pair import TokenizerPair

__all__ = ["AlignedRows", "Aligner", "Coverage", "TokenBytes", "TokenizerPair"]
