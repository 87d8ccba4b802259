"""The loss over classes against dense float64 logits, by its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.cache.codecs import make_codec
from kdscale.config.cache import VaroptCodec
from kdscale.losses import fused
from kdscale.losses.classes import ClassMap, ClassTargets
from kdscale.losses.divergences import reverse_kl_sum
from kdscale.losses.fused import Objective, head_and_loss
from kdscale.types import DenseTargets, Head, SparseTargets, Targets
from tests.unit.losses.test_fused import Largest, dense_probs, part_of, randn, targets_of


def class_map(
    teacher_ids: int, student_ids: int, count: int, seed: int, wide: float = 0.5
) -> ClassMap:
    """Return random classes: the first holds the share `wide` of the student's ids."""
    random = torch.Generator().manual_seed(seed)
    teacher = torch.randint(-1, count, (teacher_ids,), generator=random)
    student = torch.randint(count, (student_ids,), generator=random)
    student[: int(student_ids * wide)] = 0
    student[-count:] = torch.arange(count)
    return ClassMap.of(teacher, student, count)


def at(classes: ClassMap, targets: Targets, has_target: torch.Tensor) -> fused.TargetsAt:
    return lambda part, _: classes.targets(part_of(targets, part), has_target[part])


def definition(
    logits: torch.Tensor,
    labels: torch.Tensor,
    classes: ClassMap,
    probs: torch.Tensor,
    has_target: torch.Tensor,
    weight: float,
) -> torch.Tensor:
    """Return the objective of logits [P, V_S] and a teacher's probs [P, V_T], float64."""
    log_q = logits.log_softmax(-1)
    cross_entropy = -log_q.gather(-1, labels[:, None])[:, 0]
    total = torch.zeros(len(logits), dtype=torch.float64)
    for number in range(classes.class_count):
        log_mass = log_q[:, classes.student == number].logsumexp(-1)
        total -= probs[:, classes.teacher == number].sum(-1) * log_mass
        of_label = classes.student[labels] == number
        total += torch.where(of_label, cross_entropy + log_mass, 0.0)
    return (weight * torch.where(has_target, total, cross_entropy)).sum() + (
        (1 - weight) * cross_entropy
    ).sum()


@settings(deadline=None, max_examples=60)
@given(
    codec=st.sampled_from(["varopt", "sample", "weighted sample", "full"]),
    positions=st.integers(1, 40),
    teacher_ids=st.integers(5, 60),
    student_ids=st.sampled_from([12, 30, 90]),
    count=st.integers(2, 12),
    softcap=st.sampled_from([None, 3.0]),
    has_bias=st.booleans(),
    kd_weight=st.sampled_from([0.0, 0.3, 1.0]),
    wide=st.sampled_from([0.2, 0.5]),
    seed=st.integers(0, 999),
)
def test_value_and_gradients_are_those_of_the_definition(
    codec: str,
    positions: int,
    teacher_ids: int,
    student_ids: int,
    count: int,
    softcap: float | None,
    has_bias: bool,
    kd_weight: float,
    wide: float,
    seed: int,
) -> None:
    classes = class_map(teacher_ids, student_ids, count, seed, wide)
    hidden, weight = randn(seed, positions, 6), randn(seed + 1, student_ids + 2, 6)
    bias = randn(seed + 2, student_ids + 2) if has_bias else None
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(student_ids, (positions,), generator=random)
    has_target = torch.rand(positions, generator=random) < 0.8
    targets = targets_of(codec, positions, teacher_ids, seed)
    leaves = [hidden, weight, bias]
    leaves = [None if each is None else each.requires_grad_() for each in leaves]
    head = Head(weight, bias, student_ids, 0.5, softcap)
    sums = head_and_loss(
        hidden, head, labels, at(classes, targets, has_target), Objective(kd_weight)
    )
    (3 * sums.objective).backward()

    exact = [None if each is None else each.detach().double().requires_grad_() for each in leaves]
    assert exact[0] is not None
    assert exact[1] is not None
    logits = 0.5 * (exact[0] @ exact[1].T + (0 if exact[2] is None else exact[2]))[:, :student_ids]
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    probs = dense_probs(targets, teacher_ids)
    expected = definition(logits, labels, classes, probs, has_target, kd_weight)
    (3 * expected).backward()
    assert sums.objective.item() == pytest.approx(expected.item(), rel=2e-5, abs=1e-4)
    for found, reference in zip(leaves, exact, strict=True):
        if found is not None and reference is not None:
            assert found.grad is not None
            assert reference.grad is not None
            torch.testing.assert_close(found.grad.double(), reference.grad, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("is_dense", [False, True])
def test_a_target_that_is_certain_of_the_labels_class_is_cross_entropy(is_dense: bool) -> None:
    classes = class_map(30, 90, 7, 0, 0.2)
    labels = torch.arange(90)
    certain = torch.tensor(
        [int((classes.teacher == classes.student[label]).nonzero()[0]) for label in labels]
    )
    sparse = SparseTargets(certain[:, None], torch.ones(90, 1))
    one_hot = torch.nn.functional.one_hot(certain, 30).double().log().float()
    targets: Targets = DenseTargets(one_hot) if is_dense else sparse
    hidden, weight = randn(0, 90, 6).requires_grad_(), randn(1, 90, 6).requires_grad_()
    head, everywhere = Head(weight, None, 90), torch.ones(90, dtype=torch.bool)
    sums = head_and_loss(hidden, head, labels, at(classes, targets, everywhere), Objective(1.0))
    sums.objective.backward()
    found = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    plain = head_and_loss(hidden, head, labels)
    plain.objective.backward()
    assert sums.distillation.item() == pytest.approx(plain.cross_entropy.item(), rel=1e-6)
    assert sums.objective.item() == pytest.approx(plain.objective.item(), rel=1e-6)
    torch.testing.assert_close(found, (hidden.grad, weight.grad))


@pytest.mark.parametrize("codec", ["varopt", "full"])
def test_classes_of_one_id_each_give_the_ordinary_loss(codec: str) -> None:
    vocab = torch.arange(40)
    classes, targets = ClassMap.of(vocab, vocab, 40), targets_of(codec, 50, 40, 0)
    hidden, weight = randn(0, 50, 6).requires_grad_(), randn(1, 40, 6).requires_grad_()
    head, labels, everywhere = Head(weight, None, 40), vocab.repeat(2)[:50], torch.ones(50).bool()
    results = []
    for given_targets in (at(classes, targets, everywhere), lambda p, _: part_of(targets, p)):
        sums = head_and_loss(hidden, head, labels, given_targets, Objective(0.7))
        sums.objective.backward()
        values = [each.detach() for each in vars(sums).values()]
        results.append((*values, hidden.grad, weight.grad))
        hidden.grad = weight.grad = None
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_the_mean_over_samples_is_the_loss_of_the_full_distribution() -> None:
    vocab, positions = 24, 6000
    classes = class_map(vocab, 60, 8, 1, 0.2)
    logits = 2 * randn(0, 1, vocab).expand(positions, vocab)
    hidden = randn(1, 1, 6).expand(positions, 6)
    codec = make_codec(VaroptCodec(k=3, head=1), vocab)
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(positions, codec.streams, dtype=torch.float64, generator=random)
    sampled = codec.decode(codec.encode(logits, noise).payload)
    labels, everywhere = torch.full((positions,), 33), torch.ones(positions, dtype=torch.bool)
    means = []
    for targets in (sampled, DenseTargets(logits.log_softmax(-1))):
        weight = randn(2, 60, 6).requires_grad_()
        head = Head(weight, None, 60)
        sums = head_and_loss(hidden, head, labels, at(classes, targets, everywhere), Objective(1.0))
        sums.objective.backward()
        assert weight.grad is not None
        means.append((float(sums.distillation) / positions, weight.grad / positions))
    assert means[0][0] == pytest.approx(means[1][0], rel=0.01)
    assert (means[0][1] - means[1][1]).norm() / means[1][1].norm() < 0.05


def test_members_of_a_class_share_its_gradient_where_float32_has_none_of_their_probability() -> (
    None
):
    classes = ClassMap.of(torch.tensor([0, 1]), torch.tensor([0, 1, 1]), 2)
    hidden = torch.tensor([[0.0, -200.0, -201.0]], requires_grad=True)
    targets = SparseTargets(torch.tensor([[1]]), torch.tensor([[1.0]]))
    head = Head(torch.eye(3), None, 3)
    sums = head_and_loss(
        hidden, head, torch.tensor([1]), at(classes, targets, torch.tensor([True])), Objective(1.0)
    )
    sums.objective.backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[1.0, -1.0, 0.0]]))


@pytest.mark.parametrize("wide", [0.0, 0.2, 0.5])
def test_nothing_as_large_as_the_logits_is_made(
    wide: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_POSITIONS", 8)
    classes = class_map(700, 600, 200, 0, wide)
    hidden, weight = randn(0, 200, 8).requires_grad_(), randn(1, 600, 8).requires_grad_()
    targets, everywhere = targets_of("varopt", 200, 700, 0), torch.ones(200).bool()
    with Largest() as largest:
        head_and_loss(
            hidden,
            Head(weight, None, 600),
            torch.zeros(200, dtype=torch.int64),
            at(classes, targets, everywhere),
            Objective(0.5),
        ).objective.backward()
    assert largest.found == 8 * 600


def test_what_has_no_meaning_over_classes_is_refused() -> None:
    classes, hidden = class_map(20, 30, 5, 0), randn(0, 4, 6)
    head, labels, everywhere = (
        Head(randn(1, 30, 6), None, 30),
        torch.arange(4),
        torch.ones(4).bool(),
    )
    targets = at(classes, targets_of("varopt", 4, 20, 0), everywhere)
    for objective in (Objective(1.0, temperature=2.0), Objective(1.0, 1.0, reverse_kl_sum)):
        with pytest.raises(ValueError, match="temperature 1 alone"):
            head_and_loss(hidden, head, labels, targets, objective)
    with pytest.raises(ValueError, match="temperature 1 alone"):
        head_and_loss(hidden, head, labels, targets, Objective(1.0), torch.ones(4))
    with pytest.raises(ValueError, match="ghost bucket"):
        classes.targets(targets_of("topk", 4, 20, 0), everywhere)


def test_ids_without_a_class_take_their_mass_away_and_nothing_else() -> None:
    classes = ClassMap.of(torch.tensor([0, 1, -1]), torch.tensor([0, 1, 1]), 2)
    targets = SparseTargets(torch.tensor([[0, 2, 0]]), torch.tensor([[0.25, 0.5, 0.25]]))
    found = classes.targets(targets, torch.tensor([True]))
    assert isinstance(found, ClassTargets)
    assert found.ids is not None
    assert found.ids.tolist() == [[0, 0, 0]]
    assert found.probs.tolist() == [[0.25, 0.0, 0.25]]
    dense = DenseTargets(torch.tensor([[0.25, 0.25, 0.5]]).log())
    torch.testing.assert_close(
        classes.targets(dense, torch.tensor([True])).probs, torch.tensor([[0.25, 0.25]])
    )
