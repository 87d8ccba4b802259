"""Scores of language models on held-out sequences, kept as sums that ranks can add.

Means of means are wrong as soon as two batches differ in size, so nothing is divided until the end:
every figure is a quotient of sums, all sums live in one float64 vector, and evaluating on many
ranks is one all-reduce of that vector. They are kept row by row, so that the rows can be drawn
again for intervals (`intervals.py`). Positions are processed in chunks, because a vocabulary of
150,000 makes each [P, V] temporary hundreds of megabytes.

Expected calibration error is that of Guo et al., "On Calibration of Modern Neural Networks", ICML
2017: equal-width bins ((m - 1) / M, m / M], L1, the confidence of the top-1 id. Agreement and KL
are the fidelity measures of Stanton et al., "Does Knowledge Distillation Really Work?", NeurIPS
2021: a student may score well and still not do what its teacher does. KL(teacher || model) is large
where the model misses what the teacher may say, KL(model || teacher) where it says what the teacher
would not; the overlap of their likeliest ids shows what a top-1 that ties does not.
"""

import math

import numpy as np
import torch
from torch import Tensor

from kdscale.errors import KdscaleError
from kdscale.evaluate.schema import CalibrationBin, DomainMetrics

BINS = 15
TOP = 10  # ids of the overlap
CHUNK_ELEMENTS = 1 << 22  # logits in a chunk: 16 MiB of float32 for each temporary

# The state vector: these scalars row by row, then BINS each of count, summed confidence, summed
# correctness; and the same bins again for logits divided by a temperature.
TOKENS, LOSS, BYTES, COMPARED, AGREED, KL, KL_BACK, OVERLAP = range(8)
_SCALARS = 8


class LanguageModelSums:
    """Sums over target positions; `metrics` divides them.

    Ranks evaluate disjoint rows, all-reduce (sum) `state()`, and `load` the result.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        rows: int = 1,
        temperature: float | None = None,
    ) -> None:
        """Keep the state on `device`: where the logits are, no update has to wait for a copy.

        With a `temperature`, the calibration error of logits divided by it is measured too.
        """
        size = rows * _SCALARS + 2 * 3 * BINS
        self._rows = rows
        self._temperature = temperature
        self._state = torch.zeros(size, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(
        self,
        logits: Tensor,
        labels: Tensor,
        teacher_log_probs: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Add P target positions; return the KL from the teacher at each, [P] float64.

        That is 0 without a teacher.

        logits: [P, V] float32, -inf at padding ids. labels: [P] int64, none of them padding.
        teacher_log_probs: [P, V] float32, normalised, -inf at padding ids; given for all updates
        or for none. rows: [P] int64, the row that each stands in; by default the first.
        """
        assert logits.ndim == 2, f"logits {tuple(logits.shape)} are not [P, V]"
        assert labels.shape == logits.shape[:1], f"labels {tuple(labels.shape)} are not [P]"
        if teacher_log_probs is not None:
            assert teacher_log_probs.shape == logits.shape, (
                f"teacher {tuple(teacher_log_probs.shape)} and logits {tuple(logits.shape)} differ"
            )
        positions, vocabulary = logits.shape
        step = max(1, CHUNK_ELEMENTS // vocabulary)
        kl = torch.zeros(positions, dtype=torch.float64, device=logits.device)
        for start in range(0, positions, step):
            chunk = slice(start, start + step)
            teacher = None if teacher_log_probs is None else teacher_log_probs[chunk]
            at = torch.zeros_like(labels[chunk]) if rows is None else rows[chunk]
            scalars, bins = _chunk_sums(logits[chunk], labels[chunk], teacher, self._temperature)
            self._scalars.index_add_(0, at.to(self._state.device), scalars.to(self._state.device))
            self._bins.add_(bins.to(self._state.device))
            kl[chunk] = scalars[:, KL]
        return kl

    def add_bytes(self, n: float, row: int = 0) -> None:
        """Add `n` UTF-8 bytes of text that the updated positions of a row stand for."""
        self._scalars[row, BYTES] += n

    @property
    def _scalars(self) -> Tensor:
        """[rows, 8], a view of the state."""
        return self._state[: self._rows * _SCALARS].view(self._rows, _SCALARS)

    @property
    def _bins(self) -> Tensor:
        """[2, 3 * BINS], a view of the state: as the model is, and scaled."""
        return self._state[self._rows * _SCALARS :].view(2, 3 * BINS)

    @property
    def by_row(self) -> np.ndarray:
        """Sums of each row, [rows, 8] float64.

        TOKENS, LOSS, BYTES, COMPARED, AGREED, KL, KL_BACK and OVERLAP.
        """
        return self._scalars.cpu().numpy()

    def state(self) -> Tensor:
        """Return a copy of the sums, [rows * 8 + 90] float64; those of ranks add up."""
        return self._state.clone()

    def load(self, state: Tensor) -> None:
        """Replace the sums by `state`, as given by `state()` and added over ranks."""
        assert state.shape == self._state.shape, f"state {tuple(state.shape)} is of other rows"
        self._state = state.to(self._state.device, torch.float64, copy=True)

    def metrics(self) -> DomainMetrics:
        """Return the quotients of the sums; fields and units as in `DomainMetrics`.

        Raises KdscaleError where no position was added.
        """
        scalars = self._scalars.sum(dim=0).tolist()
        tokens, compared = int(scalars[TOKENS]), int(scalars[COMPARED])
        assert compared in (0, tokens), f"{compared} of {tokens} positions have a teacher"
        if tokens == 0:
            raise KdscaleError(
                "The evaluation set holds no target token.",
                "Give it more or longer documents, or lower data.min_characters.",
            )
        loss, count_bytes = scalars[LOSS] / tokens, scalars[BYTES]
        calibration, scaled = (self._calibration(number) for number in range(2))
        result: DomainMetrics = {
            "loss": loss,
            "perplexity": torch.tensor(loss, dtype=torch.float64).exp().item(),
            "bits_per_byte": scalars[LOSS] / math.log(2) / count_bytes if count_bytes else None,
            "ece": _calibration_error(calibration),
            "tokens": tokens,
            "calibration": calibration,
        }
        if self._temperature is not None:
            result["temperature"] = self._temperature
            result["ece_scaled"] = _calibration_error(scaled)
        if compared:
            result["agreement_top1"] = scalars[AGREED] / tokens
            result["overlap_top10"] = scalars[OVERLAP] / tokens
            result["kl_teacher_student"] = scalars[KL] / tokens
            result["kl_student_teacher"] = scalars[KL_BACK] / tokens
        return result

    def _calibration(self, number: int) -> list[CalibrationBin]:
        counts, confidences, corrects = self._bins[number].view(3, BINS).tolist()
        return [
            {"confidence": confidence / count, "accuracy": correct / count, "count": int(count)}
            for count, confidence, correct in zip(counts, confidences, corrects, strict=True)
            if count
        ]


def _calibration_error(bins: list[CalibrationBin]) -> float:
    gaps = sum(abs(b["accuracy"] - b["confidence"]) * b["count"] for b in bins)
    return gaps / sum(b["count"] for b in bins) if bins else 0.0


def _chunk_sums(
    logits: Tensor, labels: Tensor, teacher: Tensor | None, temperature: float | None
) -> tuple[Tensor, Tensor]:
    """Return the sums of one chunk of C positions, float64.

    The scalars of each [C, 8], and the bins [2, 3 * BINS], zero without a temperature.
    """
    sums = torch.zeros(len(labels), _SCALARS, dtype=torch.float64, device=logits.device)
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    # From the logits: the softmax may round two of them to a tie.
    top = logits.argmax(dim=-1)
    sums[:, TOKENS] = 1
    sums[:, LOSS] = -_at(log_probs, labels)
    if teacher is not None:
        sums[:, COMPARED] = 1
        sums[:, AGREED] = (top == teacher.argmax(dim=-1)).double()
        sums[:, KL] = _kl(teacher, log_probs)
        sums[:, KL_BACK] = _kl(log_probs, teacher)
        sums[:, OVERLAP] = _overlap(logits, teacher)
    correct = (top == labels).double()
    bins = _bin_sums(_at(log_probs, top).exp(), correct)
    if temperature is None:
        return sums, torch.stack([bins, torch.zeros_like(bins)])
    scaled = torch.log_softmax(logits.float() / temperature, dim=-1)
    return sums, torch.stack([bins, _bin_sums(_at(scaled, top).exp(), correct)])


def _at(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probabilities at `ids` [P]: [P] float64."""
    return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1).double()


def _bin_sums(confidence: Tensor, correct: Tensor) -> Tensor:
    """Return counts, summed confidence and correctness of each bin: [3 * BINS] float64."""
    index = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, correct])
    bins = torch.zeros(3, BINS, dtype=torch.float64, device=confidence.device)
    return bins.index_add_(1, index, values).flatten()


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) in nats, [C] float64; 0 log 0 is 0, also where both are -inf."""
    p = log_p.exp()
    terms = (log_p - log_q).mul_(p).masked_fill_(p == 0, 0.0)
    return terms.sum(dim=-1, dtype=torch.float64)


def _overlap(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the share of each one's TOP likeliest ids that are the other's too: [C] float64.

    Ids without probability, such as padding, count for neither.
    """
    count = min(TOP, logits.shape[-1])
    ours, theirs = (each.topk(count, sorted=False) for each in (logits, teacher))
    our, their = (each.values > -math.inf for each in (ours, theirs))
    same = ours.indices[:, :, None] == theirs.indices[:, None, :]
    common = (same & our[:, :, None] & their[:, None, :]).sum(dim=(1, 2))
    return 2 * common.double() / (our.sum(dim=-1) + their.sum(dim=-1))
