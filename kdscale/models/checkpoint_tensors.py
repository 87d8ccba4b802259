"""The tensors of a model's files, under the names and in the shapes that the model has for them.

Files may name tensors in another way than the model: a head by an older name, a layer's experts one
by one. transformers renames, joins and splits them while it loads a model. The same rules are
applied here, its own, to one tensor at a time or to shapes alone.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from kdscale.errors import KdscaleError
from kdscale.models.tasks import concrete_class
from kdscale.models.weight_headers import TensorHeader

_FLOATS = ("F16", "BF16", "F32", "F64")

Read = Callable[[str], torch.Tensor]


class StoredTensors:
    """What files with `headers` hold of the model of a transformers `config`."""

    def __init__(self, config: Any, headers: Mapping[str, TensorHeader]) -> None:
        with torch.device("meta"):
            self._model: Any = concrete_class(config)(copy.deepcopy(config))
        self._headers = headers
        self.wanted = {name: tuple(t.shape) for name, t in self._model.state_dict().items()}
        """Shapes of the model's tensors by name, shared ones under each of their names."""
        self.shared = _shared_names(self._model)
        """All names of each tensor of the model that has several, by each of them."""
        self._conversions = self._assign()
        self._made_by: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shapes of those that are stored, as loading gives them."""
        self._last: tuple[str, dict[str, torch.Tensor]] = ("", {})
        for first in self._conversions:
            try:
                found = self._convert(first, self._without_memory)
            except (RuntimeError, ValueError, IndexError, TypeError):
                continue  # they do not go together: what they should make is missing
            for name, tensor in found.items():
                self._made_by[name] = first
                self.shapes[name] = tuple(tensor.shape)

    def missing(self) -> list[str]:
        """Tensors of the model that loading would not find."""
        ignored = [re.compile(p) for p in self._model._keys_to_ignore_on_load_missing or ()]
        return [
            name
            for name in self.wanted
            if self._stored_name(name) is None and not any(p.search(name) for p in ignored)
        ]

    def files_of(self, name: str) -> list[str]:
        """Names of the files that the stored tensor `name` is made from."""
        stored = self._stored_name(name)
        assert stored is not None
        return sorted({self._headers[key].file for key in self._keys(self._made_by[stored])})

    def check(self, names: list[str]) -> None:
        """Raise KdscaleError where one of `names` is not stored, or stored in numbers that mean
        nothing without their scales."""
        missing = [name for name in names if self._stored_name(name) is None]
        if missing:
            raise KdscaleError(
                f"The teacher's files lack {len(missing)} tensors that the student would start "
                f"from, such as {missing[0]!r}.",
                "Save the teacher once with transformers' save_pretrained and use that folder, or "
                "start the student from `model` alone.",
            )
        own = self._model.state_dict()
        for name in names:
            if not own[name].is_floating_point():
                continue
            stored = self._stored_name(name)
            assert stored is not None
            for key in self._keys(self._made_by[stored]):
                dtype = self._headers[key].dtype
                if dtype not in _FLOATS:
                    raise KdscaleError(
                        f"The teacher's tensor {name!r} is quantised ({dtype}).",
                        "Use the teacher's folder in bfloat16, float16 or float32.",
                    )

    def read(self, name: str, read: Read) -> torch.Tensor:
        """The tensor `name` of the model; `read` gives one of the files by its name there."""
        stored = self._stored_name(name)
        assert stored is not None
        first = self._made_by[stored]
        # Several tensors may be made from the same ones, and are asked for one after the other.
        if self._last[0] != first:
            self._last = ("", {})
            self._last = (first, self._convert(first, read))
        return self._last[1][stored]

    def _assign(self) -> dict[str, tuple[Any, list[tuple[str, str]]]]:
        """By the first tensor that it makes, how transformers would convert which of the files'
        tensors: the rule, and (the rule's pattern, the file's name) of each."""
        rules = get_model_conversion_mapping(self._model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        prefix, own = self._model.base_model_prefix, self._model.state_dict()
        found: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
        for key in sorted(self._headers, key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, prefix, own)
            if name not in own and key in own:
                name, pattern = rename_source_key(key, [], [], prefix, own)
            if name not in own:
                continue
            rule = WeightRenaming(key, name) if pattern is None else by_pattern[pattern]
            found.setdefault(name, (rule, []))[1].append((pattern or key, key))
        return found

    def _keys(self, first: str) -> list[str]:
        return [key for _, key in self._conversions[first][1]]

    def _convert(self, first: str, read: Read) -> dict[str, torch.Tensor]:
        rule, parts = self._conversions[first]
        rule = copy.deepcopy(rule)
        for pattern, key in parts:
            rule.add_tensor(first, key, pattern, lambda key=key: read(key))
        made = rule.convert(first, model=self._model, config=self._model.config)
        return {name: t[0] if isinstance(t, list) else t for name, t in made.items()}

    def _without_memory(self, key: str) -> torch.Tensor:
        return torch.empty(self._headers[key].shape, device="meta")

    def _stored_name(self, name: str) -> str | None:
        """`name`, or another name of the same tensor: files hold a shared one under any of them."""
        if name in self._made_by:
            return name
        return next((each for each in self.shared.get(name, ()) if each in self._made_by), None)


def _shared_names(model: torch.nn.Module) -> dict[str, list[str]]:
    """All names of each tensor that has several, by each of them."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        names[id(tensor)].append(name)
    return {name: group for group in names.values() if len(group) > 1 for name in group}
