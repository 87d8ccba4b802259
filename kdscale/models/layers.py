"""A student that starts from chosen layers of its teacher.

Only the tensors that the student takes are read from the teacher's files, so that a teacher larger
than this machine's memory is no obstacle.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.models.build import build_model, load_config_of

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def student_config(teacher_folder: Path, layers: list[int]) -> Any:
    """The teacher's config with only `layers`. Raises KdscaleError for layers that it has not."""
    config = copy.deepcopy(load_config_of(teacher_folder))
    text = config.get_text_config()
    have = text.num_hidden_layers
    wrong = [layer for layer in layers if not 0 <= layer < have]
    if wrong:
        raise KdscaleError(
            f"teacher_layers {wrong} are not among the teacher's layers 0 to {have - 1}.",
            "Choose layers that the teacher has.",
        )
    text.num_hidden_layers = len(layers)
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[layer] for layer in layers]
    return config


def build_from_layers(teacher_folder: Path, layers: list[int], seed: int) -> PreTrainedModel:
    """The student: `layers` of the teacher in that order, and all that is no layer, in float32."""
    model = build_model(student_config(teacher_folder, layers), seed)
    blocks = _layer_prefix(model, len(layers))
    wanted = {name: _teacher_name(name, blocks, layers) for name in model.state_dict()}
    tensors = _read_tensors(teacher_folder, set(wanted.values()))
    state = {mine: tensors[theirs].float() for mine, theirs in wanted.items() if theirs in tensors}
    missing, _ = model.load_state_dict(state, strict=False)
    model.tie_weights()
    # A tied head is not in the files, because it is the embedding.
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    lost = [name for name in missing if name not in tied]
    if lost:
        raise KdscaleError(
            f"The teacher's files lack {len(lost)} tensors of the student, such as {lost[0]!r}.",
            "Save the teacher once with transformers' save_pretrained, then use that folder.",
        )
    return model


def _layer_prefix(model: PreTrainedModel, count: int) -> str:
    """Name of the module list that holds the model's layers, such as `model.layers`."""
    for name, module in model.named_modules():
        if (
            isinstance(module, torch.nn.ModuleList)
            and len(module) == count
            and "expert" not in name
        ):
            return name
    raise KdscaleError(
        f"No list of {count} layers was found in a {type(model).__name__}.",
        "Start this student from `model` instead of `teacher_layers`.",
    )


def _teacher_name(name: str, prefix: str, layers: list[int]) -> str:
    match = re.match(rf"{re.escape(prefix)}\.(\d+)\.(.*)", name)
    return f"{prefix}.{layers[int(match[1])]}.{match[2]}" if match else name


def _read_tensors(folder: Path, names: set[str]) -> dict[str, torch.Tensor]:
    if (folder / _INDEX).exists():
        weight_map: dict[str, str] = json.loads((folder / _INDEX).read_text())["weight_map"]
    elif (folder / _SINGLE).exists():
        with safe_open(folder / _SINGLE, framework="pt") as file:
            weight_map = dict.fromkeys(file.keys(), _SINGLE)
    else:
        raise KdscaleError(
            f"The teacher's folder {str(folder)!r} holds no {_SINGLE}.",
            "Save the teacher with transformers' save_pretrained.",
        )
    tensors = {}
    for file_name in sorted({weight_map[name] for name in names if name in weight_map}):
        with safe_open(folder / file_name, framework="pt") as file:
            for name in names:
                if weight_map.get(name) == file_name:
                    tensors[name] = file.get_tensor(name)
    return tensors
