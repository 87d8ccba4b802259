"""LanguageModelSums against loops in float64 that follow the definitions word by word."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from kdscale.errors import KdscaleError
from kdscale.evaluate import metrics
from kdscale.evaluate.metrics import LanguageModelSums

P, V, PADDING = 97, 23, 3
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _naive(logits: np.ndarray, labels: np.ndarray, teacher: np.ndarray) -> dict:
    """Compute the reference: one position at a time, [P, V] float64."""
    loss = kl = back = agreed = overlap = 0.0
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label, teacher_row in zip(logits, labels, teacher, strict=True):
        q, p = _softmax(row), np.exp(teacher_row)
        loss -= math.log(q[label])
        kl += sum(p[i] * math.log(p[i] / q[i]) for i in range(len(p)) if p[i] > 0)
        back += sum(q[i] * math.log(q[i] / p[i]) for i in range(len(p)) if q[i] > 0)
        agreed += q.argmax() == p.argmax()
        overlap += len(set(np.argsort(q)[-10:]) & set(np.argsort(p)[-10:])) / 10
        member = next(m for m in range(15) if q.max() <= (m + 1) / 15)
        bins.setdefault(member, []).append((q.max(), bool(q.argmax() == label)))
    n = len(labels)
    ece = sum(
        len(found) / n * abs(np.mean([ok for _, ok in found]) - np.mean([c for c, _ in found]))
        for found in bins.values()
    )
    calibration = [
        {
            "confidence": np.mean([c for c, _ in bins[m]]),
            "accuracy": np.mean([ok for _, ok in bins[m]]),
            "count": len(bins[m]),
        }
        for m in sorted(bins)
    ]
    return {
        "loss": loss / n,
        "kl": kl / n,
        "back": back / n,
        "overlap": overlap / n,
        "agreed": agreed / n,
        "ece": ece,
        "calibration": calibration,
    }


@pytest.fixture
def batch() -> Batch:
    """Logits, labels, teacher log-probabilities; the last ids are padding in both models."""
    generator = torch.Generator().manual_seed(7)
    logits = 3 * torch.randn(P, V, generator=generator)
    teacher = logits + torch.randn(P, V, generator=generator)
    logits[:, -PADDING:] = teacher[:, -PADDING:] = -math.inf
    # Half of the labels are the model's own choice, so that all confidences have some accuracy.
    labels = torch.randint(0, V - PADDING, (P,), generator=generator)
    labels[::2] = logits.argmax(-1)[::2]
    return logits, labels, torch.log_softmax(teacher, dim=-1)


@pytest.mark.parametrize("positions_a_chunk", [1, 10, 1000])
def test_agrees_with_the_definitions(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, positions_a_chunk: int
) -> None:
    monkeypatch.setattr(metrics, "CHUNK_ELEMENTS", positions_a_chunk * V)
    logits, labels, teacher = batch
    expected = _naive(logits.double().numpy(), labels.numpy(), teacher.double().numpy())
    sums = LanguageModelSums()
    sums.update(logits, labels, teacher)
    sums.add_bytes(200.0)
    sums.add_bytes(50.5)
    got = sums.metrics()
    assert got["tokens"] == P
    assert got["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert got["perplexity"] == pytest.approx(math.exp(expected["loss"]), rel=1e-5)
    bits = expected["loss"] * P / math.log(2) / 250.5
    assert got["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert got["ece"] == pytest.approx(expected["ece"], abs=1e-6)
    assert got["agreement_top1"] == expected["agreed"]
    assert got["kl_teacher_student"] == pytest.approx(expected["kl"], rel=1e-5)
    assert got["kl_student_teacher"] == pytest.approx(expected["back"], rel=1e-5)
    assert got["overlap_top10"] == pytest.approx(expected["overlap"], rel=1e-12)
    assert 0.1 < expected["overlap"] < 0.95
    assert len(got["calibration"]) == len(expected["calibration"]) > 5
    for ours, theirs in zip(got["calibration"], expected["calibration"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_the_states_of_two_halves_add_up_to_the_whole(batch: Batch) -> None:
    logits, labels, teacher = batch
    whole, total = LanguageModelSums(), LanguageModelSums()
    whole.update(logits, labels, teacher)
    whole.add_bytes(300)
    states = []
    for part, n_bytes in ((slice(0, 31), 100), (slice(31, P), 200)):
        half = LanguageModelSums()
        half.update(logits[part], labels[part], teacher[part])
        half.add_bytes(n_bytes)
        states.append(half.state())
    total.load(states[0] + states[1])
    torch.testing.assert_close(total.state(), whole.state(), rtol=1e-12, atol=0)
    assert total.metrics()["tokens"] == P
    assert total.metrics()["loss"] == pytest.approx(whole.metrics()["loss"], rel=1e-12)


def test_state_is_a_copy_and_load_replaces(batch: Batch) -> None:
    logits, labels, _ = batch
    sums = LanguageModelSums()
    sums.update(logits, labels)
    before = sums.state()
    sums.update(logits, labels)
    assert sums.state()[0] == 2 * before[0] == 2 * P
    sums.load(before)
    before.zero_()
    assert sums.metrics()["tokens"] == P


def test_a_uniform_model_scores_the_vocabulary() -> None:
    sums = LanguageModelSums()
    sums.update(torch.zeros(12, 8), torch.arange(12) % 8)
    got = sums.metrics()
    assert got["loss"] == pytest.approx(math.log(8), rel=1e-6)
    assert got["perplexity"] == pytest.approx(8, rel=1e-5)
    assert got["bits_per_byte"] is None
    assert "agreement_top1" not in got
    assert not {"kl_teacher_student", "kl_student_teacher", "overlap_top10"} & got.keys()


def test_calibration_of_a_known_case() -> None:
    # Confidence 0.8 always, right in one of four: the error is 0.55.
    logits = torch.tensor([0.8, 0.1, 0.1]).log().repeat(4, 1)
    sums = LanguageModelSums()
    sums.update(logits, torch.tensor([0, 1, 1, 2]))
    got = sums.metrics()
    assert got["ece"] == pytest.approx(0.55, abs=1e-6)
    assert [b["count"] for b in got["calibration"]] == [4]
    assert got["calibration"][0]["accuracy"] == 0.25


def test_full_confidence_is_in_the_last_bin() -> None:
    sums = LanguageModelSums()
    sums.update(torch.tensor([[1000.0, 0.0]]), torch.tensor([0]))
    assert sums.metrics()["calibration"] == [{"confidence": 1.0, "accuracy": 1.0, "count": 1}]
    assert sums.metrics()["ece"] == 0.0


def test_an_id_the_model_rules_out_costs_infinitely_much() -> None:
    teacher = torch.tensor([[0.5, 0.5]]).log()
    sums = LanguageModelSums()
    sums.update(torch.tensor([[0.0, -math.inf]]), torch.tensor([0]), teacher)
    assert sums.metrics()["kl_teacher_student"] == math.inf
    assert sums.metrics()["kl_student_teacher"] == pytest.approx(math.log(2))


def test_the_teacher_itself_has_no_divergence(batch: Batch) -> None:
    logits, labels, _ = batch
    sums = LanguageModelSums()
    sums.update(logits, labels, torch.log_softmax(logits, dim=-1))
    assert sums.metrics()["agreement_top1"] == sums.metrics()["overlap_top10"] == 1.0
    for figure in ("kl_teacher_student", "kl_student_teacher"):
        assert sums.metrics()[figure] == pytest.approx(0.0, abs=1e-7)


def test_a_diverged_model_is_shown_as_such() -> None:
    worst, broken = LanguageModelSums(), LanguageModelSums()
    worst.update(torch.tensor([[0.0, 5000.0]]), torch.tensor([0]))
    assert worst.metrics()["loss"] == 5000.0
    assert worst.metrics()["perplexity"] == math.inf
    broken.update(torch.full((2, 4), math.nan), torch.tensor([0, 1]))
    assert math.isnan(broken.metrics()["loss"])
    assert math.isnan(broken.metrics()["ece"])


def test_no_positions_are_a_user_error() -> None:
    sums = LanguageModelSums()
    sums.update(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(KdscaleError, match="no target token"):
        sums.metrics()


@pytest.mark.parametrize(
    ("logits", "labels", "teacher"),
    [((4,), (4,), None), ((4, 8), (3,), None), ((4, 8), (4,), (4, 9)), ((4, 8), (4, 1), None)],
)
def test_wrong_shapes_are_refused(
    logits: tuple[int, ...], labels: tuple[int, ...], teacher: Any
) -> None:
    given = None if teacher is None else torch.zeros(teacher)
    with pytest.raises(AssertionError):
        LanguageModelSums().update(
            torch.zeros(logits), torch.zeros(labels, dtype=torch.int64), given
        )


def test_a_teacher_for_some_positions_only_is_refused(batch: Batch) -> None:
    logits, labels, teacher = batch
    sums = LanguageModelSums()
    sums.update(logits, labels, teacher)
    sums.update(logits, labels)
    with pytest.raises(AssertionError, match="97 of 194"):
        sums.metrics()


def test_bins_are_closed_on_the_right() -> None:
    confidence = torch.tensor([0.2, 0.21, 0.0, 1.0], dtype=torch.float64)
    counts = metrics._bin_sums(confidence, torch.zeros(4, dtype=torch.float64))[:15]
    assert counts.nonzero().flatten().tolist() == [0, 2, 3, 14]


@pytest.mark.parametrize("order", ["padding first", "padding last"])
def test_padding_is_not_among_the_likeliest_ids(order: str) -> None:
    """Ten of seven ids: what is left are ties at -inf, which each model may break its own way."""
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(5, 7, generator=generator)
    wide = torch.full((5, 60), -torch.inf)
    part = slice(53, None) if order == "padding first" else slice(7)
    wide[:, part] = ours
    labels = torch.full((5,), wide[0].argmax().item())
    same = LanguageModelSums()
    same.update(wide, labels, wide.log_softmax(-1))
    assert same.metrics()["overlap_top10"] == 1.0
    # A teacher that has four of the seven: these are all of its own, and four of seven of ours.
    some = wide.clone()
    for row, ids in enumerate(wide.topk(7).indices[:, 4:]):
        some[row, ids] = -torch.inf
    fewer = LanguageModelSums()
    fewer.update(wide, labels, some.log_softmax(-1))
    assert fewer.metrics()["overlap_top10"] == pytest.approx(8 / 11)
