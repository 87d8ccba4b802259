"""Checkpoints in the store: every rank writes its part, then rank 0 the marker that makes it count.

A checkpoint holds the back end's model and optimiser, each rank's random state, the step, the
results of the validations, and the state of the loss. The learning rate, the curriculum and the
data order are pure functions of the step and the seed, so the step is all their state, beside the
version of the orders.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from kdscale.config.training import TrainingConfig
from kdscale.distributed.rank import Rank
from kdscale.errors import KdscaleError
from kdscale.store import Store, download_folder, upload_folder
from kdscale.train.backends.base import Backend
from kdscale.train.early_stopping import ValidationHistory
from kdscale.train.loop import Progress
from kdscale.utils.permutation import VERSION as ORDER_VERSION

_MARKER = "complete.json"
KEPT = 2


def save_checkpoint(
    store: Store, progress: Progress, backend: Backend, worker: Rank, training: TrainingConfig
) -> None:
    """Write the state at `progress` and delete all but the newest two checkpoints.

    The best one stays where it is to be published. Collective: the checkpoint exists once every
    rank's files are there.
    """
    name = _name(progress.step)
    with tempfile.TemporaryDirectory(prefix="kdscale-checkpoint-") as scratch:
        folder = Path(scratch)
        backend.save(folder)
        torch.save(_random_state(worker), folder / f"random-{worker.rank}.pt")
        upload_folder(folder, store, name)
    worker.barrier()
    if worker.rank == 0:
        marker = asdict(progress) | {"order": ORDER_VERSION}
        store.put(f"{name}/{_MARKER}", json.dumps(marker).encode())
        best = _name(progress.validated.best_step) if training.keep == "best" else None
        for old in _complete(store)[:-KEPT]:
            if old != best:
                _delete(store, old)
    worker.barrier()


def load_checkpoint(
    store: Store,
    backend: Backend,
    worker: Rank,
    training: TrainingConfig,
    step: int | None = None,
) -> Progress:
    """Restore the complete checkpoint of `step`, by default the newest, and return its progress.

    That of step 0 where there is none. Collective. Any world size and ZeRO stage restores what any
    other one saved.
    """
    # Rank 0 decides for all: a store may show a fresh marker to one rank before another.
    newest = _complete(store)[-1:] if worker.rank == 0 and step is None else []
    found = worker.broadcast(newest) if step is None else [_name(step)]
    if not found:
        return Progress()
    name: str = found[0]
    marker: dict[str, Any] = json.loads(store.get(f"{name}/{_MARKER}"))
    with tempfile.TemporaryDirectory(prefix="kdscale-checkpoint-") as scratch:
        folder = download_folder(store, name, Path(scratch))
        backend.load(folder)
        _restore_random_state(folder / f"random-{worker.rank}.pt")
    worker.barrier()
    is_other = marker.pop("order", 1) != ORDER_VERSION
    if is_other and step is None and worker.rank == 0:
        worker.say(
            f"note: {name} was saved by a version of kdscale that orders sequences differently: in "
            "the present epoch some of them come twice, and some not at all"
        )
    return Progress(**{**marker, "validated": ValidationHistory(**marker["validated"])})


def delete_checkpoints(store: Store) -> None:
    """Delete all checkpoints below `store`."""
    for key in store.list():
        store.delete(key)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _complete(store: Store) -> list[str]:
    return sorted(key.split("/")[0] for key in store.list() if key.endswith(f"/{_MARKER}"))


def _delete(store: Store, name: str) -> None:
    # The marker goes first: a deletion cut short leaves nothing that looks complete.
    store.delete(f"{name}/{_MARKER}")
    for key in store.list(f"{name}/"):
        store.delete(key)


def _random_state(worker: Rank) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if worker.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(worker.device)
    return state


def _restore_random_state(path: Path) -> None:
    """Restore this rank's state; a rank that the checkpoint lacks keeps the state of its seed."""
    if path.exists():
        try:
            state = torch.load(path, weights_only=True)
        except UnpicklingError as error:
            raise KdscaleError(
                f"The checkpoint's {path.name} is damaged, or holds more than tensors.",
                "Delete the newest folder of the run's checkpoints: the one before is used then.",
            ) from error
        torch.set_rng_state(state["cpu"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])
