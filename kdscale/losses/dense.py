"""Dense targets of a teacher's logits, by torch's operators: its distribution, or TAID's."""

import math
from collections.abc import Callable

import torch

from kdscale.losses.divergences import entropy_sum, forward_kl_sum
from kdscale.types import DenseTargets, TeacherLogits


def dense_targets(teacher: TeacherLogits, logits: Callable[[], torch.Tensor]) -> DenseTargets:
    """Return the targets, and call `teacher.add`.

    `logits` returns the student's, [C, V] float32, not divided by the temperature.
    """
    log_p = teacher.log_probs()
    if teacher.share is None:
        found = DenseTargets(log_p)
        teacher.add(entropy_sum(found))
        return found
    student = torch.log_softmax(logits() / teacher.temperature, dim=-1)
    teacher.add(forward_kl_sum(log_p, student))
    return DenseTargets(taid_log_probs(student, log_p, teacher.share))


def taid_log_probs(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, t: float
) -> torch.Tensor:
    """Return log softmax((1 - t) z_S + t z_T), [P, V] float32, of logits [P, V] each.

    Both may be shifted by a constant a position, so log-probabilities do as well; both are divided
    by the temperature. No gradient goes through the result. Ids without probability in the teacher
    (-inf: padding) have none here.
    """
    student, teacher = student_logits.detach().float(), teacher_logits.detach().float()
    mixed = (1 - t) * student + t * teacher
    # At t = 0 the product would be NaN.
    return torch.log_softmax(mixed.masked_fill(teacher == -math.inf, -math.inf), dim=-1)
