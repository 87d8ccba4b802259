"""A folder of adapters (LoRA) and the whole model that it stands for: its base, merged with them.

    adapter_config.json, adapter_model.safetensors    the adapters, as peft has them
    config.json                                       the base's
    base/                                             a copy of the base, where nothing else has it

All that loads a model loads it through `load.load_model`, which asks here.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE = "base"


@dataclass(frozen=True)
class AdapterFolder:
    """Adapters in a local folder, and the place of their base."""

    folder: Path
    base: str
    revision: str | None

    @classmethod
    def find(cls, source: str | Path) -> "AdapterFolder | None":
        """Return the adapters in the local folder `source`, None where there are none.

        Raises KdscaleError where they name no base, or are not in safetensors.
        """
        folder = Path(source).expanduser()
        if "://" in str(source) or not (folder / CONFIG).is_file():
            return None
        facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        named, copy = facts.get("base_model_name_or_path"), folder / BASE
        if copy.is_dir():
            return cls(folder, str(copy), None)
        if not named or not (folder / WEIGHTS).is_file():
            lacks = f"has no {WEIGHTS}" if named else f"names no base in its {CONFIG}"
            raise KdscaleError(
                f"The adapter in {str(folder)!r} {lacks}.",
                "Give a folder that peft's save_pretrained wrote, or the merged model.",
            )
        return cls(folder, named, facts.get("revision"))

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """Return the base in `dtype` with the adapters merged into its weights.

        A sum is made in float32 and rounded once. Raises KdscaleError where they do not fit.
        """
        import peft

        from kdscale.models.hf_folder import loadable
        from kdscale.models.load import load_model  # it stands on this module

        base = load_model(loadable(self.base), dtype, self.revision)
        try:
            with quiet_peft():
                adapted = peft.PeftModel.from_pretrained(base, str(self.folder), torch_device="cpu")
        except (OSError, ValueError, RuntimeError, LookupError, SafetensorError) as error:
            raise KdscaleError(
                f"The adapter in {str(self.folder)!r} does not go with its base {self.base!r}: "
                f"{error}",
                "Give the base that it was trained beside, or the merged model.",
            ) from error
        merged: PreTrainedModel = adapted.merge_and_unload()
        return merged

    def load_config(self) -> Any:
        """Return the transformers config of the base."""
        from kdscale.models.hf_folder import loadable
        from kdscale.models.load import load_config_of

        return load_config_of(loadable(self.base, weights=False), self.revision)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Inside, leave out warnings of peft that say nothing to a user.

    One is that the matrices of GPT-2's kind of linear map are transposed, which it finds out; the
    other is of an attribute of transformers that it reads by its older name.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield
