"""Single tensors out of a Hugging Face folder.

A student takes a part of its teacher. It reads that part tensor by tensor, so that a teacher larger
than this machine's memory is no obstacle.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from kdscale.errors import KdscaleError
from kdscale.models.checkpoint_tensors import StoredTensors
from kdscale.models.weight_headers import weight_headers


class TensorFiles:
    """The *.safetensors of a folder, by the names that the model of its transformers `config` has
    for them. Raises KdscaleError where they are damaged or missing."""

    def __init__(self, folder: Path, config: Any) -> None:
        self._folder = folder
        self._headers = weight_headers(str(folder))
        self._stored = StoredTensors(config, self._headers)

    def check(self, names: list[str]) -> None:
        """Raise KdscaleError where one of `names` is not there, is quantised, or shares its numbers
        with another by the config but not in the files."""
        self._stored.check(names)
        for name in names:
            for other in self._stored.shared.get(name, ()):
                both = {name, other} <= set(self._stored.shapes)
                if both and other != name and not torch.equal(self.read(name), self.read(other)):
                    raise KdscaleError(
                        f"The teacher's config.json says that {name!r} and {other!r} are one "
                        "tensor, and its files hold two different ones.",
                        "Set tie_word_embeddings to false in the teacher's config.json.",
                    )

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name` on the CPU, in the file's dtype."""
        return self._stored.read(name, self._from_file)

    def _from_file(self, key: str) -> torch.Tensor:
        with safe_open(self._folder / self._headers[key].file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(key)
        return tensor
