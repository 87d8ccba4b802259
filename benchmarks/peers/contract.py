"""Contract of a reader: a module that writes records in its format and yields them in batches.

A reader `benchmarks/peers/<name>.py` has

    PACKAGES    the distributions that it measures
    RESUME      its way to resume within an epoch, in a few words
    write(records, folder)          write the records as files, at its authors' settings
    open_loader(place) -> Loader    open its loader on such files, shuffled by its means

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
    """Records that every reader stores, one a row."""

    sample_ids: np.ndarray  # [R, 16] uint8
    input_ids: np.ndarray  # [R, T] int32
    loss_mask: np.ndarray  # [R, T] uint8
    payload: np.ndarray  # [R, T, 28] uint8

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def seq_len(self) -> int:
        """Tokens of a row, T."""
        return int(self.input_ids.shape[1])

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Return one record's fields, each flat."""
        return {name: np.ravel(getattr(self, name)[index]) for name in FIELDS}

    def save(self, folder: Path) -> None:
        """Write one .npy file a field."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in FIELDS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load the files of `save`, memory-mapped."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in FIELDS))


FIELDS = ("sample_ids", "input_ids", "loss_mask", "payload")


@dataclass(frozen=True)
class Place:
    """Place of a reader's files. Credentials and endpoints are in the environment."""

    url: str
    """A folder, or s3://bucket/prefix."""

    names: tuple[str, ...]
    """The files under it, sorted."""

    cache: Path
    """A folder on the local disk for the reader's cache; empty where the run is cold."""

    workers: int
    """Processes that load, or threads where the reader has those; 0 loads in the consumer."""

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
        """Yield every record once, in the order of epoch `number`; called for 0, then 1."""
        ...

    def state(self) -> Any:
        """Return the position after the batches taken so far, to be pickled."""
        ...

    def resume(self, state: Any) -> Iterator[Batch]:
        """Return the rest of epoch 0, on a fresh loader."""
        ...


class StatefulLoader:
    """Loader over a library's loader with `state_dict`, whose epochs follow each other."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def epoch(self, number: int) -> Iterator[Batch]:
        """Return the next epoch."""
        return iter(self._loader)

    def state(self) -> Any:
        """Return the state as counted by the loader."""
        return self._loader.state_dict()

    def resume(self, state: Any) -> Iterator[Batch]:
        """Return the rest of the epoch."""
        self._loader.load_state_dict(state)
        return iter(self._loader)
