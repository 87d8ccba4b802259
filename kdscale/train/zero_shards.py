"""ZeRO's shards of float32 values and moments: gathered for a checkpoint, and set from one.

A step updates the float32 values in the optimiser's flat shards; forward and backward use copies of
them in the computing dtype. Both have to be set. Everything here is collective, parameter by
parameter, so that no rank holds more than one of them whole.
"""

from typing import Any, Protocol

import torch

from kdscale.train.optimiser import MOMENTS, adam_state
from kdscale.train.state import Parts


class Shards(Protocol):
    """The shards of one engine."""

    def get(self, parameter: Any) -> Parts:
        """Gather one parameter's parts, whole, on every rank."""

    def begin(self, updates: int) -> None:
        """Make the optimiser one that has made `updates` updates, its moments to be put."""

    def put(self, parameter: Any, parts: Parts) -> None:
        """Keep this rank's shard of `parts`."""


class FlatShards:
    """ZeRO 1 and 2: parameters are whole, each rank's optimiser has a span of all in one row.

    DeepSpeed gives each parameter the way from one to the other (its `tensor_fragment`). It does so
    after the first step of the first group, when the other groups have no moments yet: hence they
    are made, and linked to the parameters, before any step.
    """

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer
        self.begin(0)
        self._zero._lazy_init_hp_params_optimizer_state()

    def get(self, parameter: Any) -> Parts:
        """See Shards."""
        moments = {name: parameter.get_full_hp_param(name) for name in MOMENTS}
        return {"value": parameter.get_full_hp_param(), **moments}

    def begin(self, updates: int) -> None:
        """See Shards."""
        for flat in self._zero.single_partition_of_fp32_groups:
            adam_state(self._zero.optimizer, flat, updates)

    @torch.no_grad()
    def put(self, parameter: Any, parts: Parts) -> None:
        """See Shards."""
        parameter.set_full_hp_param(parts["value"])
        for name in MOMENTS:
            parameter.set_full_hp_param(parts[name], name)
        parameter.copy_(parts["value"])


class PartitionedShards:
    """ZeRO 3: each rank has an equal part of every parameter, the last one padded."""

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer

    def get(self, parameter: Any) -> Parts:
        """See Shards."""
        moments = {name: self._zero.get_full_hp_param(parameter, name) for name in MOMENTS}
        return {"value": self._zero.get_full_hp_param(parameter), **moments}

    def begin(self, updates: int) -> None:
        """See Shards."""
        for flat in self._zero.fp32_partitioned_groups_flat:
            adam_state(self._zero.optimizer, flat, updates)

    @torch.no_grad()
    def put(self, parameter: Any, parts: Parts) -> None:
        """See Shards."""
        value = self._part(parameter, parts["value"])
        self._zero.set_local_hp_param(value, parameter)
        for name in MOMENTS:
            self._zero.set_local_hp_param(self._part(parameter, parts[name]), parameter, name)
        parameter.ds_tensor.copy_(value)
        if parameter.numel():  # gathered just now, as small ones always are
            parameter.copy_(parts["value"])

    def _part(self, parameter: Any, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of `whole`."""
        size = parameter.ds_tensor.numel()
        first = torch.distributed.get_rank(parameter.ds_process_group) * size
        part = torch.zeros(size)
        mine = whole.flatten()[first : first + size]
        part[: len(mine)] = mine
        return part
