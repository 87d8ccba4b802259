"""DeepSpeed ZeRO as a back end.

A step updates the float32 values in the optimiser's flat shards; forward and backward use copies of
them in the computing dtype. A checkpoint gathers the former, and sets both. That is collective,
parameter by parameter, so that no rank holds more than one of them whole.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from kdscale.config.training import TrainingConfig
from kdscale.distributed.rank import Rank
from kdscale.models.head import PREFIX, ModelWithHead
from kdscale.models.release import release
from kdscale.models.sharded import initialize_engine, partitioned_construction
from kdscale.train.state import (
    MOMENTS,
    Parts,
    SavedState,
    adam_state,
    count_updates,
    of_model,
    parameter_groups,
    trained_parameters,
    write_state,
)

# Sums over ranks and micro-batches. At stage 1 DeepSpeed would take another optimiser for them,
# with other shards: gradients stay in the computing dtype there.
_FLOAT32_GRADIENTS = {
    "communication_data_type": "fp32",
    "data_types": {"grad_accum_dtype": "fp32"},
}


class ZeroBackend:
    """DeepSpeed ZeRO 1, 2 or 3 with AdamW, optionally offloaded to the host's memory."""

    def __init__(
        self,
        build: Callable[[], PreTrainedModel],
        wrap: Callable[[PreTrainedModel], ModelWithHead],
        training: TrainingConfig,
        micro_batches: int,
        worker: Rank,
    ) -> None:
        self._worker = worker
        self._micro_batches = micro_batches
        self._stage = training.zero.stage
        config = _zero_config(training, micro_batches, worker)
        with partitioned_construction(config):
            self._bare = build()
        trained = wrap(self._bare)
        self._parameters = trained_parameters(trained)
        if self._stage == 3:
            _cast_unpartitioned(self._parameters.values(), worker.dtype)
        groups = parameter_groups(trained, training.optimiser.weight_decay)
        self._engine = initialize_engine(trained, config, groups)
        self._shards: Shards = (FlatShards if self._stage < 3 else PartitionedShards)(self._engine)
        self.model: torch.nn.Module = self._engine

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """See Backend. The engine counts micro-batches, and acts on `step` of the last one."""
        yield
        if not last:
            self._engine.step()

    def backward(self, loss: torch.Tensor) -> None:
        """See Backend. The engine averages over ranks and micro-batches; the factor undoes both."""
        self._engine.backward(loss * (self._worker.world_size * self._micro_batches))

    def step(self, learning_rate: float) -> float:
        """See Backend. Clipping is the engine's."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else 0.0

    def save(self, folder: Path) -> None:
        """See Backend."""
        updates = count_updates(self._engine.optimizer.optimizer)
        write_state(folder, self._worker, self._parameters, self._shards.get, updates)

    def load(self, folder: Path) -> None:
        """See Backend."""
        with SavedState(folder) as saved:
            self._shards.begin(saved.updates)
            for name, parameter in self._parameters.items():
                self._shards.put(parameter, saved.parts(name))

    def export(self, folder: Path) -> None:
        """See Backend."""
        if self._stage == 3:
            # All ranks gather; rank 0 gets the whole state, learned projections too, the others
            # None.
            gathered = self._engine._zero3_consolidated_16bit_state_dict() or {}
            state = {
                name.removeprefix(PREFIX): value
                for name, value in gathered.items()
                if name.startswith(PREFIX)
            }
        else:
            state = self._bare.state_dict()
        if self._worker.rank == 0:
            self._bare.save_pretrained(folder, state_dict=state)

    def trained_values(self) -> dict[str, torch.Tensor]:
        """See Backend."""
        mine = of_model(self._parameters)
        return {name: self._shards.get(each)["value"] for name, each in mine.items()}

    def close(self) -> None:
        """See Backend."""
        engine = self._engine
        del self.model, self._engine, self._bare, self._shards
        self._parameters.clear()
        release(engine)


def _cast_unpartitioned(parameters: Iterable[Any], dtype: torch.dtype) -> None:
    """Cast what `wrap` has made: an engine of partitioned parameters casts no others.

    It needs one dtype in all of them.
    """
    for parameter in parameters:
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)


def _zero_config(training: TrainingConfig, micro_batches: int, worker: Rank) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": training.zero.stage}
    if training.zero.offload == "cpu":
        pin = worker.device.type == "cuda"
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
        if training.zero.stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": pin}
    optimiser = training.optimiser
    # torch's AdamW on every device: DeepSpeed's own need a compiler at run time.
    adam = {"lr": optimiser.learning_rate, "betas": list(optimiser.betas), "torch_adam": True}
    if worker.device.type == "cuda":
        adam["fused"] = True
    return {
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": optimiser.clip,
        "zero_optimization": zero,
        "bf16": {"enabled": worker.dtype == torch.bfloat16},
        "zero_force_ds_cpu_optimizer": False,
        "optimizer": {"type": "AdamW", "params": adam},
        **(_FLOAT32_GRADIENTS if training.zero.stage >= 2 else {}),
    }


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
