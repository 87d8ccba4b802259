"""How far a step's gradient is from that of the full distribution, by positions a step.

Targets that are drawn give the full distribution's gradient plus noise, which averages out over the
positions of a step as 1 over their root; what is left of a biased target's error stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.ablation.corpus import Corpus
from benchmarks.ablation.student import Arm, micro_batch
from kdscale.config import RunConfig
from kdscale.distill.objective import DistillationLoss, LabelsLoss
from kdscale.train.backends.base import Backend

_ROWS = (2, 8, 32, 128)  # a step, each a divisor of the next


@dataclass
class _Level:
    """Gradients summed over the rows of a step: the reference, and each arm's less that."""

    rows: int
    reference: torch.Tensor | float = 0.0
    errors: dict[str, torch.Tensor] = field(default_factory=dict)
    seen: int = 0
    found: dict[str, list[float]] = field(default_factory=dict)

    def add(self, rows: int, reference: torch.Tensor, errors: Mapping[str, torch.Tensor]) -> None:
        """The gradients of some rows; when a step is full, how large each error is."""
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
    student: Backend, config: RunConfig, corpus: Corpus, arms: Mapping[str, Arm]
) -> list[dict[str, Any]]:
    """For each arm and number of positions a step: the norm of the gradient's error over that of
    the gradient, the mean over as many steps as the corpus has, at most 128 rows in all. The
    arm `full` is the reference."""
    student.model.eval()
    sizes = [rows for rows in _ROWS if rows <= len(corpus)]
    levels = [_Level(rows) for rows in sizes]
    for first in range(0, sizes[-1], sizes[0]):
        rows = np.arange(first, first + sizes[0])
        full = _gradient(student, config, corpus, arms["full"], rows)
        errors = {
            name: _gradient(student, config, corpus, arm, rows) - full
            for name, arm in arms.items()
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
    backend: Backend, config: RunConfig, corpus: Corpus, arm: Arm, rows: np.ndarray
) -> torch.Tensor:
    """Of the summed loss over `rows`, all parameters in one vector."""
    loss = LabelsLoss() if arm.codec is None else DistillationLoss(config, arm.codec, None)
    backend.model.zero_grad(set_to_none=True)
    objective, _ = backend.model(loss, micro_batch(corpus, arm, rows), 0)
    objective.backward()
    return torch.cat([p.grad.flatten() for p in backend.model.parameters() if p.grad is not None])
