"""AdamW: its parameter groups, and its state of a parameter or of a shard."""

from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups of `model`: matrices decay; norms and biases do not."""
    matrices: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            (matrices if len(shape) >= 2 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adam_state(optimiser: Any, tensor: torch.Tensor, updates: int) -> dict[str, torch.Tensor]:
    """Return the state of `optimiser` for `tensor` (a parameter, or a flat shard) after `updates`.

    Its moments (float32, as `tensor` in shape) are to be filled by the caller. An optimiser makes
    it at its first step only, so that it is made here where there is none.
    """
    state: dict[str, Any] = optimiser.state[tensor]
    if not state:
        state.update({name: torch.zeros_like(tensor) for name in MOMENTS})
    # torch counts in a tensor, DeepSpeed's own Adams in a number.
    is_torch = isinstance(optimiser, torch.optim.AdamW)
    state["step"] = torch.tensor(float(updates)) if is_torch else updates
    return state


def count_updates(optimiser: Any) -> int:
    """Return the number of updates that `optimiser` has made."""
    return max((int(state["step"]) for state in optimiser.state.values()), default=0)
