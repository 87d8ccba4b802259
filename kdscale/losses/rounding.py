"""Logarithms of probabilities that float32 may not have."""

import torch

# Below it float32 has no q: a target that unlikely counts as 87 nats.
SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny


def log_of(q: torch.Tensor) -> torch.Tensor:
    """Return log q, where nothing counts for less than 1.2e-38."""
    return q.clamp_min(SMALLEST_PROBABILITY).log()
