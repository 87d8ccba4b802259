"""Groups of ranks, each of which holds a whole model: sharded inside, replicated between.

A sharded model is gathered in every forward. Within a machine that takes the fast link between its
GPUs, and ranks of different groups need not keep in step.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import groupby
from typing import Literal

import torch
import torch.distributed as dist

from kdscale.distributed.rank import Rank, waiting
from kdscale.errors import KdscaleError

GroupChoice = Literal["auto", "node", "all"] | int
"""The ranks of a node, all of them, so many in a row; or `auto`, those of a node if they have
enough memory, else all."""

# Of a device's memory, for the weights of a rank: the rest is for what is gathered and computed.
_MOST_WEIGHTS = 0.5


@dataclass(frozen=True)
class RankGroup:
    """The ranks that hold a model together with this one."""

    ranks: range
    members: dist.ProcessGroup | None = None
    """Their process group; None: that of all ranks."""
    peers: dist.ProcessGroup | None = None
    """The ranks at the same place of all groups, which hold the same shard. None: there is one
    group."""

    @classmethod
    def of_all(cls, worker: Rank) -> "RankGroup":
        """Return the group of all ranks."""
        return cls(range(worker.world_size))

    @classmethod
    def alone(cls, worker: Rank) -> "RankGroup":
        """Return a group of this rank, which holds all of the model."""
        return cls(range(worker.rank, worker.rank + 1))

    @property
    def is_part(self) -> bool:
        """True if other groups hold the same model, sharded in the same way."""
        return self.peers is not None

    def any_rank(self, flag: bool, device: torch.device) -> bool:
        """Return whether `flag` holds on any rank of the group. Collective in the group."""
        if len(self.ranks) == 1:
            return flag
        flags = torch.tensor(float(flag), device=device)
        with waiting():
            dist.all_reduce(flags, group=self.members)
        return flags.item() > 0


def make_group(
    choice: GroupChoice, worker: Rank, weights: Callable[[], int], timeout_seconds: float
) -> RankGroup:
    """Return this rank's group. Collective.

    `weights` returns the bytes of the model and is called where `auto` has a choice.
    `timeout_seconds` are those of a collective. Raises KdscaleError where the ranks do not make
    equal groups.
    """
    size = _size(choice, worker, weights)
    if size == worker.world_size:
        return RankGroup.of_all(worker)
    members, peers = _process_groups(size, worker.world_size, timeout_seconds)
    first = worker.rank // size * size
    return RankGroup(range(first, first + size), members, peers)


def fits(weights: float, ranks: int, memory: float) -> bool:
    """Return whether `auto` takes groups of so many `ranks` for weights of so many bytes.

    `memory` is that of a device, bytes. A group of one would hold the model whole.
    """
    return ranks > 1 and weights / ranks <= _MOST_WEIGHTS * memory


def ranks_of_node(nodes: Sequence[int]) -> int | None:
    """Return the ranks on each node, from each rank's node; None where they differ.

    Also where the ranks of a node do not follow each other.
    """
    runs = [(node, len(list(found))) for node, found in groupby(nodes)]
    counts = {count for _, count in runs}
    is_split = len({node for node, _ in runs}) < len(runs)
    return counts.pop() if len(counts) == 1 and not is_split else None


def _size(choice: GroupChoice, worker: Rank, weights: Callable[[], int]) -> int:
    """Return the ranks of a group."""
    world = worker.world_size
    if choice == "all" or world == 1:
        return world
    if isinstance(choice, int):
        if world % choice:
            raise KdscaleError(
                f"teacher_group is {choice}, and the {world} workers that have started are no "
                "multiple of it.",
                "Give a teacher_group that divides the number of workers, without min_count; or "
                "`auto`, or `all`.",
            )
        return choice
    nodes, memories = zip(*_gather((_node(), _device_memory(worker))), strict=True)
    of_node = ranks_of_node(nodes)
    if choice == "node":
        if of_node is None or of_node == 1:
            counts = [nodes.count(node) for node in dict.fromkeys(nodes)]
            raise KdscaleError(
                f"teacher_group is `node`, and the nodes have {counts} workers: a group is two or "
                "more that follow each other, as many on each node.",
                "Start equally many workers on each node (cpus, gpus and count of the workers), or "
                "set teacher_group to `auto` or `all`.",
            )
        return of_node
    if of_node in (None, world) or not all(memories):
        return world
    return of_node if fits(weights(), of_node, min(memories)) else world


def _node() -> int:
    """Return the number of this rank's node, which Ray Train and torchrun give."""
    return int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")))


def _device_memory(worker: Rank) -> int:
    """Return the bytes of this rank's GPU, 0 on a CPU: processes there have no fast link."""
    if worker.device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(worker.device).total_memory


def _gather(own: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the numbers of all ranks, in order. Collective."""
    found: list[tuple[int, int]] = [own] * dist.get_world_size()
    with waiting():
        dist.all_gather_object(found, own)
    return found


@cache
def _process_groups(
    size: int, world: int, timeout_seconds: float
) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Return this rank's groups of members and of peers. Collective, as all ranks make all groups.

    Kept for the process: communicators are costly, and a stage loads its teacher again.
    """
    every = [range(first, first + size) for first in range(0, world, size)]
    across = [range(place, world, size) for place in range(size)]
    timeout = timedelta(seconds=timeout_seconds)
    mine = []
    for ranks in (*every, *across):
        made = dist.new_group(list(ranks), timeout=timeout)
        if dist.get_rank() in ranks:
            mine.append(made)
    members, peers = mine
    return members, peers
