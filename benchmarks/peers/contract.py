"""What an arm is: a module that writes records in its own format and gives them back in batches.

An arm `benchmarks/peers/<name>.py` has

    PACKAGES    the distributions that it measures
    RESUME      how it resumes within an epoch, in a few words
    write(records, folder)          the records as files, at the settings that its authors recommend
    open_loader(place) -> Loader    its reader on such files, shuffled by its own means

Shapes: R rows in all, B in a batch, T positions in a row, 28 payload bytes a position.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

BATCH_ROWS = 16
PAYLOAD_BYTES = 28
SEED = 7

# Arrays or tensors under the names of `Records`: sample_ids [B, 16] (or B bytes objects), input_ids
# and loss_mask [B, T], payload [B, T, 28] or [B, T * 28].
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """What every arm stores, one record a row."""

    sample_ids: np.ndarray  # [R, 16] uint8
    input_ids: np.ndarray  # [R, T] int32
    loss_mask: np.ndarray  # [R, T] uint8
    payload: np.ndarray  # [R, T, 28] uint8

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def seq_len(self) -> int:
        """T."""
        return int(self.input_ids.shape[1])

    def row(self, index: int) -> dict[str, np.ndarray]:
        """One record's fields, each flat."""
        return {name: np.ravel(getattr(self, name)[index]) for name in FIELDS}

    def save(self, folder: Path) -> None:
        """One .npy file a field."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in FIELDS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return what `save` wrote, memory-mapped."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in FIELDS))


FIELDS = ("sample_ids", "input_ids", "loss_mask", "payload")


@dataclass(frozen=True)
class Place:
    """Where an arm finds its files. Credentials and endpoints are in the environment."""

    url: str
    """A folder, or s3://bucket/prefix."""

    names: tuple[str, ...]
    """The files under it, sorted."""

    cache: Path
    """A folder on the local disk for what the arm wants to keep; empty where the run is cold."""

    workers: int
    """Processes that load (threads where the arm has those instead); 0 loads in the consumer."""

    @property
    def is_remote(self) -> bool:
        """Whether the files lie in object storage."""
        return self.url.startswith("s3://")

    def urls(self, suffix: str) -> list[str]:
        """Return the files that end in `suffix`, in order."""
        return [f"{self.url}/{name}" for name in self.names if name.endswith(suffix)]


class Loader(Protocol):
    """An open reader."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """Every record once, in the order of epoch `number`; called for 0, then 1."""
        ...

    def state(self) -> Any:
        """Where the epoch stands after the batches taken so far, to be pickled."""
        ...

    def resume(self, state: Any) -> Iterator[Batch]:
        """Return the rest of epoch 0, on a fresh loader."""
        ...
