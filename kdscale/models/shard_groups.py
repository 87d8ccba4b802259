"""DeepSpeed's ZeRO-3 over a part of the ranks, as often as there are such parts.

DeepSpeed shards over any process group, but transformers, which builds and loads the model, knows
the group of all ranks alone: rank 0 reads the files, and hands its values to the ranks of its own
group. Those of the other groups take their shards from there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist

from kdscale.distributed.groups import RankGroup


@contextmanager
def constructed_over(group: RankGroup, zero: Any) -> Iterator[None]:
    """Inside, let what transformers constructs be partitioned over the ranks of `group`.

    `zero` is the module deepspeed.zero, whose `Init` transformers calls by name, without a group.
    """
    with _replaced(zero, "Init", partial(zero.Init, data_parallel_group=group.members)):
        yield


@torch.no_grad()
def copy_shards(model: torch.nn.Module, group: RankGroup, device: torch.device) -> None:
    """Copy the shards of a partitioned `model` from the first group to all. Collective.

    A shard has the same place in every group, and goes from rank to rank without being gathered.
    """
    source = group.ranks.index(dist.get_rank())
    parameter: Any
    for parameter in model.parameters():
        shard = parameter.ds_tensor
        # Of weights that are kept on the host, too: NCCL takes tensors of the device alone.
        values = shard.to(device)
        dist.broadcast(values.view(torch.uint8), src=source, group=group.peers)
        if values is not shard:
            shard.copy_(values)


def compare_within(engine: Any, group: RankGroup) -> None:
    """Let `engine` compare its order of modules among the ranks of `group` alone.

    DeepSpeed does so in forwards that differ from the one before, over all ranks: those of other
    groups may be at another forward, or have none left.
    """
    coordinator = engine.optimizer.get_param_coordinator()
    module = import_module(type(coordinator).__module__)
    reset: Callable[[], None] = coordinator.reset_step

    def reset_step() -> None:
        with _replaced(module, "assert_ints_same_as_other_ranks", partial(_check_same, group)):
            reset()

    coordinator.reset_step = reset_step


def _check_same(group: RankGroup, ints: list[int]) -> None:
    """Raise RuntimeError where the ranks of `group` have different `ints`. Collective there."""
    box = [list(ints)]
    dist.broadcast_object_list(box, src=group.ranks[0], group=group.members)
    if box[0] != list(ints):
        raise RuntimeError(
            f"rank {dist.get_rank()} runs the modules {list(ints)} of a sharded model, and rank "
            f"{group.ranks[0]} of its group {box[0]}"
        )


@contextmanager
def _replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of a module inside of the block."""
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)
