"""Losses between hidden states of a student and of its teacher: pure functions that return sums.

They need the teacher's own states, which no cache of logits has. Romero et al., "FitNets", ICLR
2015, for the squared error behind a learned projection; Sanh et al., "DistilBERT", 2019, for the
cosine.
"""

import torch


def hidden_mse_sum(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Sum over P positions of the mean over D of (s - t)^2; [P, D] each -> scalar, float32."""
    _check(student, teacher)
    return (student.float() - teacher.float()).square().mean(dim=-1).sum()


def hidden_cosine_sum(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Sum over P positions of 1 - cos(s, t); [P, D] each -> scalar, float32."""
    _check(student, teacher)
    similar = torch.nn.functional.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return (1 - similar).sum()


def _check(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"states {tuple(student.shape)} and {tuple(teacher.shape)} differ in shape"
        )
