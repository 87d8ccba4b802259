"""Checkpoints in the store: every rank writes its part, then rank 0 writes the marker that counts.

A checkpoint holds the back end's model and optimiser, each rank's random state, and the step. The
learning rate, the curriculum and the data order are pure functions of the step and the seed, so the
step is all their state.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from kdscale.errors import KdscaleError
from kdscale.store import Store, download_folder, upload_folder
from kdscale.train.backend import Backend
from kdscale.train.loop import Progress
from kdscale.workers import Worker

_MARKER = "complete.json"
KEPT = 2


def save_checkpoint(
    store: Store, progress: Progress, backend: Backend, worker: Worker, zero_stage: int
) -> None:
    """Write the state at `progress`; afterwards only the newest two are kept.

    Collective: the checkpoint exists once every rank's files are there.
    """
    name = f"step-{progress.step:08d}"
    with tempfile.TemporaryDirectory(prefix="kdscale-checkpoint-") as scratch:
        folder = Path(scratch)
        backend.save(folder)
        torch.save(_random_state(worker), folder / f"random-{worker.rank}.pt")
        upload_folder(folder, store, name)
    worker.barrier()
    if worker.rank == 0:
        marker = {
            "step": progress.step,
            "tokens": progress.tokens,
            "world_size": worker.world_size,
            "zero_stage": zero_stage,
        }
        store.put(f"{name}/{_MARKER}", json.dumps(marker).encode())
        for old in _complete(store)[:-KEPT]:
            _delete(store, old)
    worker.barrier()


def load_checkpoint(store: Store, backend: Backend, worker: Worker, zero_stage: int) -> Progress:
    """Restore the newest complete checkpoint and say where it stands; at 0 where there is none.

    Collective. Raises KdscaleError where sharded states were saved at another world size or stage.
    """
    # Rank 0 decides for all: a store may show a fresh marker to one rank before another.
    found = worker.broadcast(_complete(store)[-1:] if worker.rank == 0 else None)
    if not found:
        return Progress()
    name: str = found[0]
    marker: dict[str, Any] = json.loads(store.get(f"{name}/{_MARKER}"))
    saved = (marker["zero_stage"], marker["world_size"] if zero_stage else None)
    wanted = (zero_stage, worker.world_size if zero_stage else None)
    if saved != wanted:
        raise KdscaleError(
            f"The checkpoint {store}/{name} was saved at ZeRO stage {marker['zero_stage']} by "
            f"{marker['world_size']} workers; this run has stage {zero_stage} and "
            f"{worker.world_size} workers.",
            "Resume with the same workers.count and zero.stage, or delete the folder to start "
            "again. zero.stage 0 can resume at any number of workers.",
        )
    with tempfile.TemporaryDirectory(prefix="kdscale-checkpoint-") as scratch:
        folder = download_folder(store, name, Path(scratch))
        backend.load(folder)
        _restore_random_state(folder / f"random-{worker.rank}.pt")
    worker.barrier()
    return Progress(int(marker["step"]), int(marker["tokens"]))


def delete_checkpoints(store: Store) -> None:
    """Remove all checkpoints below `store`."""
    for key in store.list():
        store.delete(key)


def _complete(store: Store) -> list[str]:
    return sorted(key.split("/")[0] for key in store.list() if key.endswith(f"/{_MARKER}"))


def _delete(store: Store, name: str) -> None:
    # The marker goes first: a deletion cut short leaves nothing that looks complete.
    store.delete(f"{name}/{_MARKER}")
    for key in store.list(f"{name}/"):
        store.delete(key)


def _random_state(worker: Worker) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if worker.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(worker.device)
    return state


def _restore_random_state(path: Path) -> None:
    """A rank that did not exist when the checkpoint was saved keeps the state of its seed."""
    if path.exists():
        state = torch.load(path, weights_only=True)
        torch.set_rng_state(state["cpu"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])
