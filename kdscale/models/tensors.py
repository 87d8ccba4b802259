"""Single tensors out of a Hugging Face folder.

A student takes a part of its teacher. It reads that part tensor by tensor, so that a teacher larger
than this machine's memory is no obstacle.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from kdscale.errors import KdscaleError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class TensorFiles:
    """The *.safetensors of a folder. Raises KdscaleError where it holds none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file_of = _file_by_name(folder)

    def check(self, names: list[str]) -> None:
        """Raise KdscaleError where one of `names` is not there."""
        missing = [name for name in names if self._stored_name(name) is None]
        if missing:
            raise KdscaleError(
                f"The teacher's files lack {len(missing)} tensors of the student, such as "
                f"{missing[0]!r}.",
                "Save the teacher once with transformers' save_pretrained, then use that folder. "
                "Architectures whose files name tensors in another way than the model, as some "
                "with experts do, can only start from `model`.",
            )

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name` on the CPU, in the file's dtype. Raises KdscaleError for weights that
        are quantised: their numbers mean nothing without their scales."""
        stored = self._stored_name(name)
        assert stored is not None
        with safe_open(self._folder / self._file_of[stored], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(stored)
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise KdscaleError(
                f"The teacher's tensor {name!r} is quantised ({tensor.dtype}).",
                "Use the teacher's folder in bfloat16, float16 or float32.",
            )
        return tensor

    def _stored_name(self, name: str) -> str | None:
        """Folders that were saved without a head name their tensors without the model's prefix."""
        bare = name.partition(".")[2]
        return next((n for n in (name, bare) if n in self._file_of), None)


def _file_by_name(folder: Path) -> dict[str, str]:
    if (folder / _INDEX).exists():
        weight_map: dict[str, str] = json.loads((folder / _INDEX).read_text())["weight_map"]
        return weight_map
    if not (folder / _SINGLE).exists():
        raise KdscaleError(
            f"The teacher's folder {str(folder)!r} holds no {_SINGLE}.",
            "Save the teacher with transformers' save_pretrained.",
        )
    with safe_open(folder / _SINGLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), _SINGLE)
