"""Losses between attention weights of student and teacher: pure functions that return sums.

Both take weights of P queries over K keys, [P, K], non-negative, 0 at the keys that a query must
not see. Wang et al., "MiniLM", arXiv:2002.10957, for the KL of the teacher's attention from the
student's; Jiao et al., "TinyBERT", arXiv:1909.10351, for the squared error, which there is one of
scores before the softmax: those no model gives out.
"""

import torch

# Below it float32 has no logarithm: a key that the teacher looks at and the student does not, as
# behind a sliding window, counts as 87 nats, without a slope.
_SMALLEST_WEIGHT = torch.finfo(torch.float32).tiny


def attention_kl_sum(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Sum over P queries of KL(t || s) over keys; [P, K] each -> scalar, float32, in nats.

    Both are divided by their sums: bfloat16 rounds them off 1, and a model with attention sinks
    gives less than 1 to its keys.
    """
    _check(student, teacher)
    p, q = (
        weights / weights.sum(dim=-1, keepdim=True).clamp_min(_SMALLEST_WEIGHT)
        for weights in (teacher.float(), student.float())
    )
    return -(torch.special.entr(p) + p * q.clamp_min(_SMALLEST_WEIGHT).log()).sum()


def attention_mse_sum(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Sum over P queries of the sum over keys of (s - t)^2; [P, K] each -> scalar, float32.

    Not the mean over keys: most of a row's are masked, so that the loss would shrink with the
    length of the row and with the number of documents in it.
    """
    _check(student, teacher)
    return (student.float() - teacher.float()).square().sum()


def _check(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"weights {tuple(student.shape)} and {tuple(teacher.shape)} differ in shape"
        )
