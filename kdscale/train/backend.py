"""Two ways to train a model over ranks, behind one small interface.

DDP is the default: its state is the same on every rank, so that another world size can resume it.
DeepSpeed ZeRO shards optimiser states, gradients and parameters for models that need it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from kdscale.config.training import OptimiserConfig, TrainingConfig
from kdscale.models.sharded import initialize_engine, partitioned_construction
from kdscale.workers import Worker

_STATE = "model-and-optimiser.pt"


class Backend(Protocol):
    """A model with its optimiser on this rank."""

    model: torch.nn.Module

    def micro_batch(self, last: bool) -> Any:
        """Context of one forward and backward; `last` is the one whose end synchronises
        gradients."""

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of `loss`, this rank's share of a sum over all ranks."""

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear gradients; returns the gradient's global norm before clipping."""

    def save(self, folder: Path) -> None:
        """Write this rank's part of the state to `folder`. Collective."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote. Collective."""

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder on rank 0. Collective."""


def make_backend(
    build: Callable[[], PreTrainedModel],
    training: TrainingConfig,
    micro_batches: int,
    worker: Worker,
) -> Backend:
    """DDP or ZeRO around `build()`, by `training.zero.stage`; `micro_batches` per step and rank."""
    if training.zero.stage == 0:
        return DdpBackend(build(), training.optimiser, worker)
    return ZeroBackend(build, training, micro_batches, worker)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
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


class DdpBackend:
    """PyTorch DistributedDataParallel with AdamW; float32 weights, autocast on a GPU."""

    def __init__(self, model: PreTrainedModel, optimiser: OptimiserConfig, worker: Worker) -> None:
        self._bare = model.to(worker.device)
        self._worker = worker
        self._clip = optimiser.clip
        self.model: torch.nn.Module = self._bare
        if worker.world_size > 1:
            self.model = DistributedDataParallel(self._bare)
        self._optimiser = torch.optim.AdamW(
            parameter_groups(self._bare, optimiser.weight_decay),
            lr=optimiser.learning_rate,
            betas=optimiser.betas,
        )

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """See Backend."""
        device_type = self._worker.device.type
        with torch.autocast(device_type, self._worker.dtype, enabled=device_type == "cuda"):
            if isinstance(self.model, DistributedDataParallel) and not last:
                with self.model.no_sync():
                    yield
            else:
                yield

    def backward(self, loss: torch.Tensor) -> None:
        """See Backend. DDP averages over ranks; the factor makes that a sum."""
        (loss * self._worker.world_size).backward()

    def step(self, learning_rate: float) -> float:
        """See Backend."""
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        norm = torch.nn.utils.clip_grad_norm_(self._bare.parameters(), self._clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return float(norm)

    def save(self, folder: Path) -> None:
        """See Backend. Every rank holds the same state, so rank 0 writes it."""
        if self._worker.rank == 0:
            state = {"model": self._bare.state_dict(), "optimiser": self._optimiser.state_dict()}
            torch.save(state, folder / _STATE)

    def load(self, folder: Path) -> None:
        """See Backend."""
        state = torch.load(folder / _STATE, map_location=self._worker.device, weights_only=True)
        self._bare.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])

    def export(self, folder: Path) -> None:
        """See Backend."""
        if self._worker.rank == 0:
            self._bare.save_pretrained(folder)


class ZeroBackend:
    """DeepSpeed ZeRO 1, 2 or 3 with AdamW, optionally offloaded to the host's memory."""

    def __init__(
        self,
        build: Callable[[], PreTrainedModel],
        training: TrainingConfig,
        micro_batches: int,
        worker: Worker,
    ) -> None:
        self._worker = worker
        self._micro_batches = micro_batches
        self._stage = training.zero.stage
        config = _zero_config(training, micro_batches, worker)
        with partitioned_construction(config):
            self._bare = build()
        groups = parameter_groups(self._bare, training.optimiser.weight_decay)
        self._engine = initialize_engine(self._bare, config, groups)
        self.model: torch.nn.Module = self._engine

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """See Backend. The engine counts micro-batches itself and acts on `step` of the last
        one."""
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
        """See Backend. Sharded states belong to this world size."""
        self._engine.save_checkpoint(str(folder), tag="zero", save_latest=False)

    def load(self, folder: Path) -> None:
        """See Backend."""
        self._engine.load_checkpoint(str(folder), tag="zero")

    def export(self, folder: Path) -> None:
        """See Backend."""
        if self._stage == 3:
            # All ranks gather; rank 0 gets the whole state, the others None.
            state = self._engine._zero3_consolidated_16bit_state_dict()
        else:
            state = self._bare.state_dict()
        if self._worker.rank == 0:
            self._bare.save_pretrained(folder, state_dict=state)


def _zero_config(training: TrainingConfig, micro_batches: int, worker: Worker) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": training.zero.stage}
    if training.zero.offload == "cpu":
        pin = worker.device.type == "cuda"
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
        if training.zero.stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": pin}
    optimiser = training.optimiser
    return {
        "train_micro_batch_size_per_gpu": training.micro_batch_rows,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": optimiser.clip,
        "zero_optimization": zero,
        "bf16": {"enabled": worker.dtype == torch.bfloat16},
        # The fused CPU Adam needs a compiler at run time; torch's AdamW does the same on a CPU.
        "zero_force_ds_cpu_optimizer": worker.device.type == "cuda",
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimiser.learning_rate,
                "betas": list(optimiser.betas),
                "torch_adam": worker.device.type == "cpu",
            },
        },
    }
