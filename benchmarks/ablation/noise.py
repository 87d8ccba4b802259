"""Distance of a step's gradient from that of the full distribution, by positions a step.

Targets that are drawn give the full distribution's gradient plus noise, which averages out over the
positions of a step as 1 over their root; what is left of a biased target's error stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.ablation.corpus import Corpus
from benchmarks.ablation.student import Variant, micro_batch
from kdscale.config import RunConfig
from kdscale.distill.objective import DistillationLoss, LabelsLoss
from kdscale.train.backends.base import Backend

_ROWS = (2, 8, 32, 128)  # a step, each a divisor of the next


@dataclass
class _Level:
    """Gradients summed over the rows of a step: the reference, and each variant's less that."""

    rows: int
    reference: torch.Tensor | float = 0.0
    errors: dict[str, torch.Tensor] = field(default_factory=dict)
    seen: int = 0
    found: dict[str, list[float]] = field(default_factory=dict)

    def add(self, rows: int, reference: torch.Tensor, errors: Mapping[str, torch.Tensor]) -> None:
        """Add the gradients of some rows; record the errors when a step is full."""
        self.reference = self.reference + reference
        for name, error in errors.items():
            self.errors[name] = self.errors.get(name, 0) + error
        self.seen += rows
        if self.seen == self.rows:
            size = torch.as_tensor(self.reference).norm()
            for name, error in self.errors.items():
                self.found.setdefault(name, []).append(float(error.norm() / size))
            self.reference, self.errors, self.seen = 0.0, {}, 0


def gradient_noise(
    student: Backend, config: RunConfig, corpus: Corpus, variants: Mapping[str, Variant]
) -> list[dict[str, Any]]:
    """Return the relative error of the gradient for each variant and number of positions a step.

    It is the norm of the error over that of the gradient, the mean over the steps of at most 128
    rows. The variant `full` is the reference.
    """
    student.model.eval()
    sizes = [rows for rows in _ROWS if rows <= len(corpus)]
    levels = [_Level(rows) for rows in sizes]
    for first in range(0, sizes[-1], sizes[0]):
        rows = np.arange(first, first + sizes[0])
        full = _gradient(student, config, corpus, variants["full"], rows)
        errors = {
            name: _gradient(student, config, corpus, variant, rows) - full
            for name, variant in variants.items()
            if name != "full"
        }
        for level in levels:
            level.add(len(rows), full, errors)
    length = corpus.rows.input_ids.shape[1]
    return [
        {"arm": name, "positions": level.rows * length, "error": float(np.mean(values))}
        for level in levels
        for name, values in level.found.items()
    ]


def _gradient(
    backend: Backend, config: RunConfig, corpus: Corpus, variant: Variant, rows: np.ndarray
) -> torch.Tensor:
    """Return the gradient of the summed loss over `rows`, all parameters in one vector."""
    loss = LabelsLoss() if variant.codec is None else DistillationLoss(config, variant.codec, None)
    backend.model.zero_grad(set_to_none=True)
    objective, _ = backend.model(loss, micro_batch(corpus, variant, rows), 0)
    objective.backward()
    return torch.cat([p.grad.flatten() for p in backend.model.parameters() if p.grad is not None])
