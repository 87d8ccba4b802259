"""The fused head and loss against logits and autograd in float64, in value and every gradient."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kdscale.cache.codecs import make_codec
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec, VaroptCodec
from kdscale.losses import fused
from kdscale.losses.chunk import chunk_loss
from kdscale.losses.divergences import Divergence, forward_kl_sum, reverse_kl_sum
from kdscale.losses.fused import LossSums, Objective, head_and_loss
from kdscale.types import DenseTargets, Head, SparseTargets, Targets

CODECS: dict[str, CodecConfig] = {
    "varopt": VaroptCodec(k=4, head=2),
    "sample": SampleCodec(draws=5),
    "weighted sample": SampleCodec(draws=5, tau=0.8),
    "topk": TopkCodec(k=4),
    "full": FullCodec(),
}


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def targets_of(name: str, positions: int, vocab: int, seed: int) -> Targets:
    codec = make_codec(CODECS[name], vocab)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(positions, codec.streams, generator=generator, dtype=torch.float64)
    return codec.decode(codec.encode(2 * randn(seed, positions, vocab), noise).payload)


def part_of(targets: Targets, part: slice) -> Targets:
    fields = {name: value for name, value in vars(targets).items() if value is not None}
    return type(targets)(**{name: value[part] for name, value in fields.items()})


def dense_probs(targets: Targets, vocab: int) -> torch.Tensor:
    """[P, V] float64 without a ghost."""
    if isinstance(targets, DenseTargets):
        return targets.log_probs.double().exp()
    zeros = torch.zeros(len(targets.ids), vocab, dtype=torch.float64)
    return zeros.scatter_add_(-1, targets.ids, targets.probs.double())


def classes(logits: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p and log q over the ids, or the listed ones and one class for all others."""
    q = logits.softmax(-1)
    if isinstance(targets, DenseTargets):
        return targets.log_probs.double(), q.log()
    assert targets.ghost is not None
    rest = torch.ones_like(q).scatter(-1, targets.ids, 0.0).mul(q).sum(-1, keepdim=True)
    p = torch.cat([targets.probs, targets.ghost[:, None]], -1).double()
    # An empty class has no logarithm, nor any slope to its zero.
    q = torch.cat([q.gather(-1, targets.ids), rest], -1).clamp_min(1e-37)
    return p.clamp_min(1e-8).log(), q.log()


def naive(
    hidden: torch.Tensor,
    head: Head,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    targets: Targets,
    objective: Objective,
    label_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the objective from dense float64 logits, by definition."""
    z = head.scale * (hidden @ weight.T + (0 if bias is None else bias))[:, : head.vocab_size]
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    q = z.softmax(-1)
    at_labels = -q.gather(-1, labels.clamp_min(0)[:, None]).log()[:, 0]
    cross_entropy = (at_labels if label_weights is None else at_labels * label_weights).sum()
    tempered = (z / objective.temperature).softmax(-1)
    if objective.divergence is not None:
        distillation = objective.divergence(*classes(z / objective.temperature, targets))
    else:
        distillation = -(dense_probs(targets, head.vocab_size) * tempered.log()).sum()
        ghost = getattr(targets, "ghost", None)
        if ghost is not None:
            log_q = classes(z / objective.temperature, targets)[1]
            distillation = distillation - (ghost.double() * log_q[:, -1]).sum()
    w = objective.kd_weight
    return w * objective.temperature**2 * distillation + (1 - w) * cross_entropy


@settings(deadline=None, max_examples=80)
@given(
    codec=st.sampled_from(list(CODECS)),
    positions=st.integers(1, 40),
    vocab=st.integers(5, 60),
    padding=st.integers(0, 3),
    has_bias=st.booleans(),
    softcap=st.sampled_from([None, 3.0]),
    scale=st.sampled_from([1.0, 0.5]),
    temperature=st.sampled_from([1.0, 2.0]),
    kd_weight=st.sampled_from([0.0, 0.3, 1.0]),
    divergence=st.sampled_from([None, forward_kl_sum, reverse_kl_sum]),
    weighted=st.booleans(),
    seed=st.integers(0, 999),
)
def test_value_and_gradients_are_those_of_dense_logits(
    codec: str,
    positions: int,
    vocab: int,
    padding: int,
    has_bias: bool,
    softcap: float | None,
    scale: float,
    temperature: float,
    kd_weight: float,
    divergence: Divergence | None,
    weighted: bool,
    seed: int,
) -> None:
    if codec not in ("full", "topk"):
        divergence = None
    width = 6
    hidden = randn(seed, positions, width).requires_grad_()
    weight = randn(seed + 1, vocab + padding, width).requires_grad_()
    bias = randn(seed + 2, vocab + padding).requires_grad_() if has_bias else None
    labels = torch.randint(vocab, (positions,), generator=torch.Generator().manual_seed(seed))
    targets = targets_of(codec, positions, vocab, seed)
    objective = Objective(kd_weight, temperature, divergence)
    head = Head(weight, bias, vocab, scale, softcap)
    weights = None
    if weighted:
        # Every third label is not known.
        weights = randn(seed + 3, positions).abs()
        weights[::3], labels[::3] = 0, -1
    sums = head_and_loss(
        hidden, head, labels, lambda part, _: part_of(targets, part), objective, weights
    )
    (3 * sums.objective).backward()

    exact = [
        None if tensor is None else tensor.detach().double().requires_grad_()
        for tensor in (hidden, weight, bias)
    ]
    doubled = None if weights is None else weights.double()
    expected = naive(exact[0], head, exact[1], exact[2], labels, targets, objective, doubled)  # type: ignore[arg-type]  # never None
    (3 * expected).backward()
    assert sums.objective.item() == pytest.approx(expected.item(), rel=2e-5, abs=1e-4)
    for found, reference in zip((hidden, weight, bias), exact, strict=True):
        if found is not None and reference is not None:
            assert found.grad is not None
            assert reference.grad is not None
            torch.testing.assert_close(found.grad.double(), reference.grad, rtol=1e-3, atol=2e-4)


def sums_of(positions: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> tuple[LossSums, ...]:
    monkeypatch.setattr(fused, "_POSITIONS", chunk)
    hidden = randn(0, positions, 8).requires_grad_()
    weight = randn(1, 30, 8).requires_grad_()
    labels = torch.arange(positions) % 30
    targets = targets_of("varopt", positions, 30, 0)
    sums = head_and_loss(
        hidden, Head(weight, None, 30), labels, lambda p, _: part_of(targets, p), Objective(0.5)
    )
    sums.objective.backward()
    return sums, hidden.grad, weight.grad  # type: ignore[return-value]  # gradients are there


@pytest.mark.parametrize("chunk", [1, 7, 64, 65, 100])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sums_of(65, 1000, monkeypatch)
    parts = sums_of(65, chunk, monkeypatch)
    for one, other in zip(vars(whole[0]).values(), vars(parts[0]).values(), strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-6)
    for one, other in zip(whole[1:], parts[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def relative_error(found: torch.Tensor | None, exact: torch.Tensor | None) -> float:
    assert found is not None
    assert exact is not None
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_autocast_is_followed(has_bias: bool, weighted: bool) -> None:
    """Float32 weights under autocast give what rounded hidden states give, in float32."""
    positions, vocab, width = 300, 50, 16
    targets, objective = targets_of("varopt", positions, vocab, 0), Objective(0.5)
    labels = torch.arange(positions) % vocab
    weights = (labels % 3).float() if weighted else None

    def compute(rounded: bool) -> tuple[float, list[torch.Tensor], Head]:
        leaves = [randn(0, positions, width), randn(1, vocab + 3, width), randn(2, vocab + 3)]
        hidden, weight, bias = (each.requires_grad_() for each in leaves)
        head = Head(weight, bias if has_bias else None, vocab)
        with torch.autocast("cpu", torch.bfloat16, enabled=not rounded):
            sums = head_and_loss(
                hidden.bfloat16() if rounded else hidden,
                head,
                labels,
                lambda part, _: part_of(targets, part),
                objective,
                weights,
            )
        sums.objective.backward()
        return sums.objective.item(), [hidden, weight, *([bias] if has_bias else [])], head

    (value, leaves, head), (rounded, others, _) = compute(False), compute(True)
    assert value == rounded
    exact = [each.detach().double().requires_grad_() for each in leaves]
    expected = naive(
        exact[0],
        head,
        exact[1],
        exact[2] if has_bias else None,
        labels,
        targets,
        objective,
        None if weights is None else weights.double(),
    )
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=2e-3)
    for found, other, reference in zip(leaves, others, exact, strict=True):
        assert found.grad is not None
        assert found.grad.dtype == torch.float32
        torch.testing.assert_close(found.grad, other.grad, rtol=0, atol=0)
        assert relative_error(found.grad, reference.grad) < 1e-2


def test_the_weights_gradient_is_added_up_in_float32() -> None:
    positions, vocab, width = 8192, 300, 16
    labels = torch.multinomial(
        1 / torch.arange(1.0, vocab + 1),
        positions,
        replacement=True,
        generator=torch.Generator().manual_seed(0),
    )
    hidden = randn(0, positions, width).bfloat16()
    weight = (0.05 * randn(1, vocab, width)).bfloat16().requires_grad_()
    (3 * head_and_loss(hidden, Head(weight, None, vocab), labels).objective).backward()
    exact = weight.detach().double().requires_grad_()
    (
        3 * torch.nn.functional.cross_entropy(hidden.double() @ exact.T, labels, reduction="sum")
    ).backward()
    assert weight.grad is not None
    assert exact.grad is not None
    # Each chunk's gradient in the logits is rounded, too.
    rounding = relative_error(exact.grad.bfloat16(), exact.grad)
    assert relative_error(weight.grad, exact.grad) < 2.5 * rounding
    # Rows of rare ids have small numbers, which sums of halves would lose.
    assert relative_error(weight.grad[-100:], exact.grad[-100:]) < 2.5 * rounding


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kd_weight", [0.0, 0.3, 1.0])
def test_a_deferred_factor_changes_nothing(codec: str, weighted: bool, kd_weight: float) -> None:
    positions, vocab = 30, 40
    logits, labels = 3 * randn(0, positions, vocab), torch.arange(positions) % vocab
    targets, objective = targets_of(codec, positions, vocab, 0), Objective(kd_weight)
    weights = (labels % 3).float() if weighted else None
    found = []
    for defers in (False, True):
        gradient = torch.empty_like(logits)
        sums, factor = chunk_loss(
            logits.clone(), labels, targets, objective, gradient, weights, defers=defers
        )
        found.append((sums, gradient if factor is None else gradient * factor))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_one_pass_gives_both_losses_and_the_teachers_gradient() -> None:
    hidden, weight, labels = randn(0, 9, 4), randn(1, 12, 4), torch.arange(9)
    targets = targets_of("varopt", 9, 12, 0)
    head = Head(weight, None, 12)
    found = head_and_loss(hidden, head, labels, lambda p, _: part_of(targets, p), Objective(0.25))
    log_q = (hidden @ weight.T).log_softmax(-1)
    assert found.cross_entropy.item() == pytest.approx(-log_q[range(9), labels].sum().item())
    dense = dense_probs(targets, 12)
    assert found.distillation.item() == pytest.approx(-(dense * log_q).sum().item())
    mixed = 0.25 * found.distillation.item() + 0.75 * found.cross_entropy.item()
    assert found.objective.item() == pytest.approx(mixed)


def test_the_mean_gradient_over_samples_is_that_of_the_full_distribution() -> None:
    vocab, positions = 20, 4000
    teacher, hidden = 2 * randn(0, 1, vocab), randn(1, 1, 6).expand(positions, 6)
    weight = randn(2, vocab, 6).requires_grad_()
    codec = make_codec(VaroptCodec(k=3, head=1), vocab)
    noise = torch.rand(
        positions, codec.streams, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    payload = codec.encode(teacher.expand(positions, vocab), noise).payload
    labels = torch.zeros(positions, dtype=torch.int64)
    head = Head(weight, None, vocab)
    head_and_loss(
        hidden, head, labels, lambda p, _: codec.decode(payload[p]), Objective(1.0)
    ).objective.backward()
    q = (hidden[:1] @ weight.T).softmax(-1)
    expected = ((q - teacher.softmax(-1)).T @ hidden[:1]).detach()
    assert weight.grad is not None
    error = (weight.grad / positions - expected).norm() / expected.norm()
    assert error < 0.05


def test_no_gradient_where_none_is_wanted() -> None:
    hidden, weight = randn(0, 5, 4), randn(1, 9, 4)
    labels = torch.arange(5)
    with torch.no_grad():
        sums = head_and_loss(hidden, Head(weight, None, 9), labels)
    assert not sums.objective.requires_grad
    frozen = hidden.clone().requires_grad_()
    head_and_loss(frozen, Head(weight, None, 9), labels).objective.backward()
    assert frozen.grad is not None
    expected = torch.autograd.functional.jacobian(
        lambda h: torch.nn.functional.cross_entropy(h @ weight.T, labels, reduction="sum"), hidden
    )
    torch.testing.assert_close(frozen.grad, expected)


def test_no_position_has_no_gradient() -> None:
    hidden, weight = randn(0, 0, 4).requires_grad_(), randn(1, 9, 4).requires_grad_()
    sums = head_and_loss(hidden, Head(weight, None, 7), torch.zeros(0, dtype=torch.int64))
    sums.objective.backward()
    assert sums.objective.item() == 0
    assert torch.equal(weight.grad, torch.zeros(9, 4))  # type: ignore[arg-type]  # it is there


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation gives."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                self.found = max(self.found, each.numel())
        return result


@pytest.mark.parametrize("kd_weight", [0.0, 0.5])
def test_nothing_as_large_as_the_logits_is_made(
    kd_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_POSITIONS", 16)
    positions, vocab, width = 200, 500, 8
    hidden = randn(0, positions, width).requires_grad_()
    weight = randn(1, vocab, width).requires_grad_()
    targets = targets_of("varopt", positions, vocab, 0)
    with Largest() as largest:
        head_and_loss(
            hidden,
            Head(weight, None, vocab),
            torch.zeros(positions, dtype=torch.int64),
            lambda part, _: part_of(targets, part),
            Objective(kd_weight),
        ).objective.backward()
    assert largest.found == 16 * vocab


def test_a_leaf_keeps_the_gradient_that_the_forward_made_and_there_is_no_second_one() -> None:
    hidden, weight = randn(0, 5, 4).requires_grad_(), randn(1, 9, 4).requires_grad_()
    objective = head_and_loss(hidden, Head(weight, None, 9), torch.arange(5)).objective
    node: Any = objective.grad_fn
    made = [gradient.data_ptr() for gradient in node.gradients[:2]]
    objective.backward(retain_graph=True)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert [hidden.grad.data_ptr(), weight.grad.data_ptr()] == made
    with pytest.raises(RuntimeError, match="handed out already"):
        objective.backward()


@pytest.mark.parametrize(("logit", "loss"), [(20.0, 20.0), (80.0, 80.0), (500.0, 87.34)])
def test_an_unlikely_label_has_its_value_up_to_87_nats_and_its_gradient_always(
    logit: float, loss: float
) -> None:
    hidden = torch.tensor([[0.0, logit]], requires_grad=True)
    targets = SparseTargets(torch.tensor([[0]]), torch.tensor([[1.0]]))
    head = Head(torch.eye(2), None, 2)
    sums = head_and_loss(
        hidden, head, torch.tensor([0]), lambda part, _: part_of(targets, part), Objective(0.5)
    )
    sums.objective.backward()
    assert float(sums.cross_entropy) == pytest.approx(loss, rel=1e-4)
    assert float(sums.distillation) == pytest.approx(loss, rel=1e-4)
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, torch.tensor([[-1.0, 1.0]]))


@pytest.mark.parametrize("has_bias", [False, True])
def test_hidden_states_of_half_precision_meet_a_weight_of_full(has_bias: bool) -> None:
    vocab, labels = 30, torch.arange(20)
    exact = [randn(0, 20, 8), randn(1, vocab + 2, 8), randn(2, vocab + 2)]
    exact = [tensor.bfloat16().float().requires_grad_() for tensor in exact]
    hidden, weight, bias = (tensor.detach().clone() for tensor in exact)
    half = hidden.bfloat16().requires_grad_()
    head = Head(weight.requires_grad_(), bias.requires_grad_() if has_bias else None, vocab)
    found = head_and_loss(half, head, labels).objective
    found.backward()
    logits = (exact[0] @ exact[1].T + (exact[2] if has_bias else 0))[:, :vocab]
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-2)
    for one, other in zip((half, weight, bias)[: 2 + has_bias], exact, strict=False):
        assert one.grad is not None
        assert other.grad is not None
        assert one.grad.dtype == one.dtype
        error = (one.grad.float() - other.grad).norm() / other.grad.norm()
        assert error < 2e-2


@pytest.mark.parametrize(
    ("labels", "width"),
    [(torch.zeros(4, dtype=torch.int64), 8), (torch.zeros(5, dtype=torch.int64), 7)],
)
def test_shapes_that_do_not_fit_are_refused(labels: torch.Tensor, width: int) -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        head_and_loss(randn(0, 5, 8), Head(randn(1, 9, width), None, 9), labels)


def test_logits_of_a_model_of_its_own_kind_give_the_same() -> None:
    labels, logits = torch.arange(9), randn(0, 9, 15).requires_grad_()
    targets = targets_of("varopt", 9, 12, 0)
    objective = Objective(0.25)
    found = head_and_loss(
        logits, Head(None, None, 12), labels, lambda p, _: part_of(targets, p), objective
    )
    found.objective.backward()
    own = logits.detach()[:, :12].clone().requires_grad_()
    eye = Head(torch.eye(12), None, 12)
    expected = head_and_loss(own, eye, labels, lambda p, _: part_of(targets, p), objective)
    expected.objective.backward()
    assert found.objective.item() == pytest.approx(expected.objective.item())
    assert logits.grad is not None
    assert own.grad is not None
    torch.testing.assert_close(logits.grad[:, :12], own.grad)
    assert (logits.grad[:, 12:] == 0).all()


@pytest.mark.parametrize("balanced", [False, True])
def test_labels_that_are_weighed_count_so_without_a_teacher(balanced: bool) -> None:
    hidden, weight = randn(0, 7, 4).requires_grad_(), randn(1, 9, 4)
    labels = torch.tensor([3, -1, 0, 8, -1, 2, 2])
    weights = (labels >= 0).float() * (torch.arange(7) + 1.0 if balanced else 1)
    found = head_and_loss(hidden, Head(weight, None, 9), labels, label_weights=weights)
    found.objective.backward()
    exact = hidden.detach().clone().requires_grad_()
    each = torch.nn.functional.cross_entropy(
        exact @ weight.T, labels, reduction="none", ignore_index=-1
    )
    (each * weights).sum().backward()
    assert found.objective.item() == pytest.approx((each * weights).sum().item(), rel=1e-5)
    torch.testing.assert_close(hidden.grad, exact.grad)
