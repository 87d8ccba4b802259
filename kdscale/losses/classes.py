"""Loss over classes of ids: for a student whose tokenizer is not its teacher's.

Ids of both are sorted into classes that both can tell apart (`kdscale.distill.alignment.pair`).
With P_c and Q_c the mass of teacher p and student q in class c, and y the label,

    L = - sum_c P_c log Q_c - log(q_y / Q_class(y))
    dL/dz_s = q_s sum_c P_c - P_class(s) q_s / Q_class(s)
              + [class(s) = class(y)] q_s / Q_class(s) - [s = y]

The first term is a proper score of what the teacher can tell; the label decides inside its class.
It is cross-entropy where P is one-hot at the label's class, and linear in p, so that sampled
targets stay unbiased: ids become classes, and those that stand twice add up.

A sparse target touches the members of K + 1 classes. Only classes of more than 16 members, which a
table of members would fill with padding, are added up whole, in passes over their members; where
these are many, and for a dense target, over all ids. 256 positions of SmolLM2-135M's head (49,152
ids, width 576) take one CPU thread 580 ms with targets of 16 ids of its own, 595 ms with Gemma 3's
(452 ids in wide classes).
"""

from dataclasses import dataclass

import torch

from kdscale.losses.rounding import SMALLEST_PROBABILITY, log_of
from kdscale.types import DenseTargets, Targets

_NARROW = 16

# Of the student's ids, in wide classes: from here on, all classes at once are faster.
_MANY_WIDE = 0.25


@dataclass(frozen=True)
class Members:
    """Some of a student's ids, each with the number of its class among `count` of them."""

    ids: torch.Tensor  # [N] int64
    numbers: torch.Tensor  # [N] int64
    count: int


@dataclass(frozen=True)
class ClassMap:
    """Classes of the ids of a teacher and of a student, on a device."""

    teacher: torch.Tensor  # [V_T] int64; -1: no class
    student: torch.Tensor  # [V_S] int64
    class_count: int  # C
    table: (
        torch.Tensor
    )  # [C, M] int64: the first members of each class, repeated where it has fewer
    is_member: torch.Tensor  # [C, M] bool: of a narrow class, and no repetition
    wide: Members
    wide_number: torch.Tensor  # [C] int64: among the wide classes; their count for narrow ones

    @classmethod
    def of(
        cls,
        teacher: torch.Tensor,
        student: torch.Tensor,
        class_count: int,
        device: torch.device | str = "cpu",
    ) -> "ClassMap":
        """Take the classes of a pair of tokenizers: [V_T] and [V_S] integers.

        Every class needs a member among the student's.
        """
        student = student.cpu().long()
        order = torch.argsort(student, stable=True)
        sizes = torch.bincount(student, minlength=class_count)
        starts = sizes.cumsum(0) - sizes
        columns = torch.arange(min(_NARROW, int(sizes.max())))
        table = order[starts[:, None] + torch.minimum(columns, sizes[:, None] - 1)]
        is_wide = sizes > _NARROW
        is_member = (columns < sizes[:, None]) & ~is_wide[:, None]
        wide_count = int(is_wide.sum())
        wide_number = torch.where(is_wide, is_wide.cumsum(0) - 1, wide_count)
        wide_ids = order[is_wide[student[order]]]
        return cls(
            teacher.to(device).long(),
            student.to(device),
            class_count,
            table.to(device),
            is_member.to(device),
            Members(wide_ids.to(device), wide_number[student[wide_ids]].to(device), wide_count),
            wide_number.to(device),
        )

    def targets(self, found: Targets, has_target: torch.Tensor) -> "ClassTargets":
        """Return targets over classes from the teacher's over its ids; `has_target` is [P] bool.

        Where it is False, `found` may be anything valid: the label is the target. The mass of ids
        without a class is left out. ValueError for a ghost bucket: its ids have classes that are
        listed too, so that no class's mass is known.
        """
        if isinstance(found, DenseTargets):
            known = torch.where(self.teacher < 0, self.class_count, self.teacher)
            probs = found.log_probs.new_zeros(len(found.log_probs), self.class_count + 1)
            probs.index_add_(-1, known, found.log_probs.exp())
            return ClassTargets(self, None, probs[:, : self.class_count], has_target)
        if found.ghost is not None:
            raise ValueError("targets with a ghost bucket have no known mass of classes")
        classes = self.teacher[found.ids]
        probs, classes = found.probs * (classes >= 0), classes.clamp_min(0)
        if len(self.wide.ids) <= _MANY_WIDE * len(self.student):
            return ClassTargets(self, classes, probs, has_target)
        whole = probs.new_zeros(len(probs), self.class_count).scatter_add_(-1, classes, probs)
        return ClassTargets(self, None, whole, has_target)


@dataclass(frozen=True)
class ClassTargets:
    """A target distribution over classes of ids; where a position has none, the label alone."""

    classes: ClassMap
    ids: torch.Tensor | None
    """[P, K] int64: classes; those that stand twice add up. None: all C of them."""

    probs: torch.Tensor  # [P, K] or [P, C] float32; they may sum to less than 1
    has_target: torch.Tensor  # [P] bool


def add_classes(
    logits: torch.Tensor,
    q: torch.Tensor,
    labels: torch.Tensor,
    targets: ClassTargets,
    weight: float,
) -> torch.Tensor:
    """Return the sum (scalar) of the loss over P positions, and add its gradient to `q`.

    It is cross-entropy where a position has no target. The softmax `q` [P, V] of `logits` becomes
    the gradient of `weight` times this loss plus (1 - weight) times cross-entropy, but for the -1
    at the label. `labels` is [P] int64.
    """
    classes, has_target = targets.classes, targets.has_target[:, None]
    at_label = log_of(q.gather(-1, labels[:, None])).sum()
    probs = torch.where(has_target, targets.probs, 0.0)
    mass = torch.where(has_target, targets.probs.sum(dim=-1, keepdim=True), 1.0)
    factor = 1 - weight + weight * mass
    # The label's class counts with the mass -1 besides: L = - sum_c pull_c log Q_c - log q_y.
    own, owed = classes.student[labels][:, None], -has_target.to(probs.dtype)
    if targets.ids is None:
        pull = probs.scatter_add_(-1, own, owed)
        value = _add_all(q, classes, pull, factor, weight)
    else:
        ids, pull = torch.cat([targets.ids, own], dim=-1), torch.cat([probs, owed], dim=-1)
        value = _add_listed(logits, q, classes, ids, pull, factor, weight)
    return -value - at_label


def _add_all(
    q: torch.Tensor, classes: ClassMap, pull: torch.Tensor, factor: torch.Tensor, weight: float
) -> torch.Tensor:
    """Return sum_c pull_c log Q_c (scalar) over all classes, and make `q` the gradient."""
    sums = q.new_zeros(pull.shape).index_add_(-1, classes.student, q)
    ratio = -weight * pull / sums.clamp_min(SMALLEST_PROBABILITY)
    q.mul_(ratio.index_select(-1, classes.student).add_(factor))
    return (pull * log_of(sums)).sum()


def _add_listed(
    logits: torch.Tensor,
    q: torch.Tensor,
    classes: ClassMap,
    ids: torch.Tensor,
    pull: torch.Tensor,
    factor: torch.Tensor,
    weight: float,
) -> torch.Tensor:
    """Return sum_c pull_c log Q_c (scalar) over classes `ids` [P, K], and make `q` the gradient.

    A member's share of its class is a softmax over the class, exact where float32 has no q.
    """
    members, is_member = classes.table[ids], classes.is_member[ids]  # [P, K, M]
    places = members.flatten(1)
    inside = logits.gather(-1, places).view_as(members).masked_fill(~is_member, -torch.inf)
    inside = torch.where(is_member, inside.softmax(dim=-1), 0.0)  # of a wide class: NaN
    sums = (q.gather(-1, places).view_as(members) * is_member).sum(dim=-1)
    wide = classes.wide
    if wide.count:
        number = classes.wide_number[ids]
        held = q.index_select(-1, wide.ids)
        wide_sums = q.new_zeros(len(q), wide.count + 1).index_add_(-1, wide.numbers, held)
        sums += wide_sums.gather(-1, number)
        # The last column takes what the narrow classes have, and is not read.
        ratio = torch.zeros_like(wide_sums).scatter_add_(-1, number, pull)
        ratio /= wide_sums.clamp_min(SMALLEST_PROBABILITY)
        held *= ratio.index_select(-1, wide.numbers)
    q.mul_(factor).scatter_add_(-1, places, (-weight * pull[..., None] * inside).flatten(1))
    if wide.count:
        q.index_add_(-1, wide.ids, held, alpha=-weight)
    return (pull * log_of(sums)).sum()
