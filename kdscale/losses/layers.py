"""Losses between layers of student and teacher: hidden states and attention weights.

Pure functions that return sums over P positions as float32 scalars. They need the teacher's own
layers, which no cache of logits has.

    hidden states     squared error behind a learned projection: Romero et al., "FitNets", ICLR 2015
                      cosine: Sanh et al., "DistilBERT", 2019
    attention weights KL(teacher || student): Wang et al., "MiniLM", arXiv:2002.10957
                      squared error: Jiao et al., "TinyBERT", arXiv:1909.10351, there of the
                      scores before the softmax, which no model returns

Attention weights are [P, K], P queries over K keys, non-negative, 0 at keys that a query must not
see.
"""

import torch

# Below it float32 has no logarithm: a key that the teacher looks at and the student does not, as
# behind a sliding window, counts as 87 nats, without a slope.
_SMALLEST_WEIGHT = torch.finfo(torch.float32).tiny


def hidden_mse_sum(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the sum over P positions of mean_D (s - t)^2; [P, D] each."""
    _check(student, teacher)
    return (student.float() - teacher.float()).square().mean(dim=-1).sum()


def hidden_cosine_sum(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the sum over P positions of 1 - cos(s, t); [P, D] each."""
    _check(student, teacher)
    similar = torch.nn.functional.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return (1 - similar).sum()


def attention_kl_sum(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the sum over P queries of KL(t || s) over keys, in nats; [P, K] each.

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
    """Return the sum over P queries of sum_K (s - t)^2; [P, K] each.

    Not the mean over keys: most of a query's keys are masked, so that the loss would shrink with
    the length of the sequence and with the number of documents in it.
    """
    _check(student, teacher)
    return (student.float() - teacher.float()).square().sum()


def _check(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape"
        )
