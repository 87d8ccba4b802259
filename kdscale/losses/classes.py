"""Loss over classes of ids: targets of a teacher with another tokenizer."""

from dataclasses import dataclass

import torch

from kdscale.types import ClassTargets, Targets


@dataclass(frozen=True)
class ClassMap:
    """Classes of the ids of a teacher and of a student, on a device."""

    teacher: torch.Tensor  # [V_T] int64; -1: no class
    student: torch.Tensor  # [V_S] int64
    class_count: int

    @classmethod
    def of(
        cls,
        teacher: torch.Tensor,
        student: torch.Tensor,
        class_count: int,
        device: torch.device,
    ) -> "ClassMap":
        """Take the classes of a pair of tokenizers: [V_T] and [V_S] integers."""
        raise NotImplementedError

    def targets(self, found: Targets, has_target: torch.Tensor) -> ClassTargets:
        """Return targets over classes from the teacher's over ids; `has_target` is [P] bool.

        Where it is False, `found` may be anything valid: the label is the target. ValueError for a
        ghost bucket: its ids belong to classes that are listed, whose mass is then not known.
        """
        raise NotImplementedError
