"""Model and optimiser in a folder, parameter by parameter, independent of what sharded them.

Each rank gathers every parameter in turn and keeps its share of them, so that no rank ever holds
more than that and one parameter. What is written is whole, hence any number of ranks, and any ZeRO
stage, can continue from it. Buffers are not in it: a model is built with them, and no training
changes those of a causal language model.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kdscale.distributed.rank import Rank
from kdscale.train.optimiser import MOMENTS

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
