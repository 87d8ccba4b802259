"""Plain data parallelism: every rank holds the whole model and optimiser."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from kdscale.config.training import OptimiserConfig
from kdscale.distributed.rank import Rank
from kdscale.models.head import ModelWithHead
from kdscale.models.modes import computing_dtype
from kdscale.models.release import release
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


class DdpBackend:
    """PyTorch DistributedDataParallel with AdamW; float32 weights, autocast on a GPU."""

    def __init__(self, trained: ModelWithHead, optimiser: OptimiserConfig, worker: Rank) -> None:
        trained = trained.to(worker.device)
        self._bare = trained.model
        self._worker = worker
        self._clip = optimiser.clip
        self._parameters = trained_parameters(trained)
        self.model: torch.nn.Module = trained
        if worker.world_size > 1:
            # A language model's buffers are constants, such as the frequencies of its positions.
            self.model = DistributedDataParallel(
                trained, gradient_as_bucket_view=True, broadcast_buffers=False
            )
        self._optimiser = torch.optim.AdamW(
            parameter_groups(trained, optimiser.weight_decay),
            lr=optimiser.learning_rate,
            betas=optimiser.betas,
            fused=worker.device.type == "cuda" or None,
        )

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """See Backend."""
        with computing_dtype(self.model, self._worker):
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
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return float(norm)

    def save(self, folder: Path) -> None:
        """See Backend."""
        updates = count_updates(self._optimiser)
        write_state(folder, self._worker, self._parameters, self._get, updates)

    def load(self, folder: Path) -> None:
        """See Backend."""
        with SavedState(folder) as saved:
            for name, parameter in self._parameters.items():
                self._put(parameter, saved.parts(name), saved.updates)

    def export(self, folder: Path) -> None:
        """See Backend."""
        if self._worker.rank == 0:
            self._bare.save_pretrained(folder)

    def trained_values(self) -> dict[str, torch.Tensor]:
        """See Backend."""
        return {name: each.detach() for name, each in of_model(self._parameters).items()}

    def close(self) -> None:
        """See Backend."""
        model = self.model
        # The buckets that gradients are reduced in go with the module.
        del self.model, self._bare
        self._optimiser.state.clear()
        self._parameters.clear()
        release(model)

    def _get(self, parameter: torch.nn.Parameter) -> Parts:
        state = self._optimiser.state.get(parameter, {})
        # One that no loss depended on has no moments.
        moments = {name: state.get(name, torch.zeros_like(parameter)) for name in MOMENTS}
        return {"value": parameter.detach(), **moments}

    @torch.no_grad()
    def _put(self, parameter: torch.nn.Parameter, parts: Parts, updates: int) -> None:
        state = adam_state(self._optimiser, parameter, updates)
        parameter.copy_(parts["value"])
        for name in MOMENTS:
            state[name].copy_(parts[name])
