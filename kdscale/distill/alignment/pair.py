"""Classes of the ids of two tokenizers that both can tell apart (construction C)."""

from dataclasses import dataclass

import numpy as np

from kdscale.data.token_bytes import TokenBytes
from kdscale.data.tokenizer import TokenizerInfo
from kdscale.store import Store


@dataclass(frozen=True)
class TokenizerPair:
    """Teacher's and student's tokenizer, and the classes of their ids."""

    teacher: TokenBytes
    student: TokenBytes
    teacher_info: TokenizerInfo
    student_info: TokenizerInfo
    teacher_classes: np.ndarray  # [V_T] int32; -1: an id whose mass no class takes
    student_classes: np.ndarray  # [V_S] int32
    class_count: int
    counterparts: np.ndarray
    """[V_T] int32: the student's special token for a special token of the teacher; -1: none."""

    @property
    def digest(self) -> str:
        """Name of the pair: of both tokenizers, their special tokens and the construction."""
        raise NotImplementedError

    @classmethod
    def build(
        cls,
        teacher: TokenBytes,
        student: TokenBytes,
        teacher_info: TokenizerInfo,
        student_info: TokenizerInfo,
    ) -> "TokenizerPair":
        """Sort all ids into classes. KdscaleError where the two have nothing in common."""
        raise NotImplementedError

    def save(self, store: Store) -> str:
        """Write the pair below its digest, unless it is there; return the key."""
        raise NotImplementedError

    @classmethod
    def load(
        cls,
        store: Store,
        teacher: TokenBytes,
        student: TokenBytes,
        teacher_info: TokenizerInfo,
        student_info: TokenizerInfo,
    ) -> "TokenizerPair | None":
        """Return the pair of these tokenizers that `store` has, None without one."""
        raise NotImplementedError
