"""AdamW's state, and model and optimiser in a folder, independent of what sharded them.

Each rank gathers every parameter in turn and keeps its share of them, so that no rank ever holds
more than that and one parameter. What is written is whole, hence any number of ranks, and any ZeRO
stage, can continue from it. Buffers are not in it: a model is built with them, and no training
changes those of a causal language model.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kdscale.distributed.rank import Rank
from kdscale.models.head import PREFIX

MOMENTS = ("exp_avg", "exp_avg_sq")
PARTS = ("value", *MOMENTS)
_UPDATES = "updates"

Parts = dict[str, torch.Tensor]
"""A parameter's `value`, `exp_avg` and `exp_avg_sq`: float32, of its whole shape."""


def write_state(
    folder: Path,
    worker: Rank,
    parameters: Mapping[str, torch.nn.Parameter],
    get: Callable[[torch.nn.Parameter], Parts],
    updates: int,
) -> None:
    """Write this rank's share of the trained `parameters`, and the `updates`, to `folder`.

    `updates` is the optimiser's number of them. `get` is called for all parameters in the same
    order on every rank.
    """
    mine: dict[str, torch.Tensor] = {}
    for index, (name, parameter) in enumerate(parameters.items()):
        parts = get(parameter)
        if index % worker.world_size == worker.rank:
            mine |= {f"{part}/{name}": parts[part].cpu().contiguous() for part in PARTS}
    path = folder / f"state-{worker.rank:05d}.safetensors"
    save_file(mine, path, metadata={_UPDATES: str(updates)})


class SavedState:
    """Files that any number of ranks wrote to a folder: a context, in which they are mapped."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        paths = sorted(folder.glob("state-*.safetensors"))
        files = [self._stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        self._holders = {key: file for file in files for key in file.offset_keys()}
        self.updates = int(files[0].metadata()[_UPDATES])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def parts(self, name: str) -> Parts:
        """Return the parts of the parameter `name`, on the CPU."""
        keys = {part: f"{part}/{name}" for part in PARTS}
        return {part: self._holders[key].get_tensor(key) for part, key in keys.items()}


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of `model` that the optimiser has, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def of_model(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
    """Return those `parameters` of a ModelWithHead that are its model's, by their names there."""
    own = (name for name in parameters if name.startswith(PREFIX))
    return {name.removeprefix(PREFIX): parameters[name] for name in own}


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


def adam_state(
    optimiser: torch.optim.Optimizer, tensor: torch.Tensor, updates: int
) -> dict[str, torch.Tensor]:
    """Return the state of an AdamW for `tensor` (a parameter, or a flat shard) after `updates`.

    Its moments (float32, as `tensor` in shape) are to be filled by the caller. An optimiser makes
    it at its first step only, so that it is made here where there is none.
    """
    state: dict[str, Any] = optimiser.state[tensor]
    if not state:
        state.update({name: torch.zeros_like(tensor) for name in MOMENTS})
    # A fused kernel reads the count where the tensor is; others count on the CPU.
    is_fused = any(group.get("fused") for group in optimiser.param_groups)
    device = tensor.device if is_fused else None
    state["step"] = torch.tensor(float(updates), dtype=torch.float32, device=device)
    return state


def count_updates(optimiser: Any) -> int:
    """Return the number of updates that `optimiser` has made."""
    return max((int(state["step"]) for state in optimiser.state.values()), default=0)
