"""Hugging Face folder of a model that anyone can load, and loading it again.

A classifier of chunks is no class of transformers. Its folder loads in two ways: as the plain
classifier, which takes texts of one chunk, and with `trust_remote_code=True` as itself, from two
files of code beside its weights.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from kdscale.models import chunked_classifier as chunked
from kdscale.models.chunked_classifier import is_chunked

CODE = "modeling_kdscale"
_CLASS = "ChunkedClassifier"
_MODELING = """\
\"\"\"A classifier of long documents over transformers' {plain}; see chunked.py.\"\"\"

from transformers import {plain}

from .chunked import chunked_class

{name} = chunked_class({plain})
"""


def save_model(model: PreTrainedModel, folder: Path, auto_class: str) -> None:
    """Write config, weights and generation config, to be loaded by transformers' `auto_class`."""
    model.save_pretrained(folder)
    if is_chunked(model.config):
        _add_code(folder, type(model).__name__, auto_class)


def load_again(folder: Path, auto_class: str, dtype: torch.dtype) -> torch.nn.Module:
    """Load the model in `folder` as its card instructs a user to."""
    if (folder / f"{CODE}.py").exists():
        # Through the auto class it would take the plain one's place for the rest of the process.
        loads = get_class_from_dynamic_module(f"{CODE}.{_CLASS}", str(folder))
        model: torch.nn.Module = loads.from_pretrained(str(folder), dtype=dtype)
    else:
        loads = getattr(transformers, auto_class)
        model = loads.from_pretrained(str(folder), dtype=dtype, trust_remote_code=False)
    return model.eval()


def _add_code(folder: Path, plain: str, auto_class: str) -> None:
    """Write the class of chunks over transformers' `plain`, as code that transformers finds."""
    assert chunked.__file__ is not None
    shutil.copy(chunked.__file__, folder / "chunked.py")
    (folder / f"{CODE}.py").write_text(_MODELING.format(plain=plain, name=_CLASS), encoding="utf-8")
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config["auto_map"] = {auto_class: f"{CODE}.{_CLASS}"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
