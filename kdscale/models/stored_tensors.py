"""Tensors of a model's files, under the names and in the shapes that the model has for them.

Files may name tensors in another way than the model: a head by an older name, a layer's experts one
by one. transformers renames, joins and splits them while it loads a model. Its own rules are
applied here, to one tensor at a time or to shapes alone: a student reads its part of a teacher
larger than this machine's memory, and weights are checked from the headers of their files.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from kdscale.errors import KdscaleError
from kdscale.models.load import lacks_weights
from kdscale.models.tasks import concrete_class
from kdscale.models.weight_headers import TensorHeader, weight_headers

_FLOATS = ("F16", "BF16", "F32", "F64")


class StoredTensors:
    """The stored tensors of the model of a transformers `config`, by the model's names."""

    def __init__(
        self,
        config: Any,
        headers: Mapping[str, TensorHeader],
        folder: Path | None = None,
        what: str = "teacher",
    ) -> None:
        """`headers` are those of its files, which are in `folder` if they are to be read.

        `what` names the model in messages.
        """
        self._what = what
        with torch.device("meta"):
            self._model: Any = concrete_class(config)(copy.deepcopy(config))
        self._headers = headers
        self._folder = folder
        self.wanted = {name: tuple(t.shape) for name, t in self._model.state_dict().items()}
        """Shapes of the model's tensors by name, shared ones under each of their names."""
        self._shared = _shared_names(self._model)
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

    @classmethod
    def open(
        cls,
        source: str | Path,
        config: Any,
        revision: str | None = None,
        what: str = "teacher",
    ) -> Self:
        """Read the headers of the model at `source`: a local folder, a store's URL or a hub name.

        Only those of a local folder can be read. Raises KdscaleError where files are damaged or
        missing.
        """
        headers = weight_headers(str(source), revision)
        folder = Path(source).expanduser()
        is_local = "://" not in str(source) and folder.is_dir()
        return cls(config, headers, folder if is_local else None, what)

    def absent(self) -> list[str]:
        """Return the tensors of the model that are not stored."""
        return [name for name in self.wanted if self._stored_name(name) is None]

    def missing(self) -> list[str]:
        """Return those that are not stored, and that the model cannot make without its files."""
        ignored = [re.compile(p) for p in self._model._keys_to_ignore_on_load_missing or ()]
        return [name for name in self.absent() if not any(p.search(name) for p in ignored)]

    def files_of(self, name: str) -> list[str]:
        """Return the names of the files that the stored tensor `name` is made from."""
        return sorted({self._headers[key].file for key in self._keys(name)})

    def check(self, names: list[str]) -> None:
        """Raise KdscaleError where one of `names` cannot be read.

        It is not stored, or quantised; or the config takes it and another for one tensor, and the
        files, if they are local, hold two.
        """
        missing = [name for name in names if self._stored_name(name) is None]
        if missing:
            raise KdscaleError(
                f"The {self._what}'s files lack {len(missing)} tensors that the student would "
                f"start from, such as {missing[0]!r}.",
                f"Save the {self._what} once with transformers' save_pretrained and use that "
                "folder, or start the student from `model` alone.",
            )
        own = self._model.state_dict()
        for name in names:
            dtypes = {self._headers[key].dtype for key in self._keys(name)}
            if own[name].is_floating_point() and not dtypes <= set(_FLOATS):
                raise KdscaleError(
                    f"The {self._what}'s tensor {name!r} is quantised "
                    f"({', '.join(sorted(dtypes - set(_FLOATS)))}).",
                    f"Use the {self._what}'s folder in bfloat16, float16 or float32.",
                )
            if self._folder is not None:
                self._check_shared(name)

    def read(self, name: str) -> torch.Tensor:
        """Return the tensor `name` of the model on the CPU, in the file's dtype."""
        stored = self._stored_name(name)
        assert stored is not None
        first = self._made_by[stored]
        # Several tensors may be made from the same ones, and are asked for one after the other.
        if self._last[0] != first:
            self._last = ("", {})
            self._last = (first, self._convert(first, self._from_file))
        return self._last[1][stored]

    def _check_shared(self, name: str) -> None:
        for other in self._shared.get(name, ()):
            both = {name, other} <= set(self.shapes)
            if both and other != name and not torch.equal(self.read(name), self.read(other)):
                raise KdscaleError(
                    f"The {self._what}'s config.json says that {name!r} and {other!r} are one "
                    "tensor, and its files hold two different ones.",
                    f"Set tie_word_embeddings to false in the {self._what}'s config.json.",
                )

    def _assign(self) -> dict[str, tuple[Any, list[tuple[str, str]]]]:
        """Return how transformers would convert the files' tensors.

        By the first tensor that a conversion makes: its rule, and (the rule's pattern, the name in
        the file) of each tensor that goes into it.
        """
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

    def _keys(self, name: str) -> list[str]:
        """Return the names in the files of what the stored tensor `name` is made from."""
        stored = self._stored_name(name)
        assert stored is not None
        return [key for _, key in self._conversions[self._made_by[stored]][1]]

    def _convert(self, first: str, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        rule, parts = self._conversions[first]
        rule = copy.deepcopy(rule)
        for pattern, key in parts:
            rule.add_tensor(first, key, pattern, lambda key=key: read(key))
        made = rule.convert(first, model=self._model, config=self._model.config)
        return {name: t[0] if isinstance(t, list) else t for name, t in made.items()}

    def _without_memory(self, key: str) -> torch.Tensor:
        return torch.empty(self._headers[key].shape, device="meta")

    def _from_file(self, key: str) -> torch.Tensor:
        assert self._folder is not None
        with safe_open(self._folder / self._headers[key].file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(key)
        return tensor

    def _stored_name(self, name: str) -> str | None:
        """Return the name under which the files hold a tensor; a shared one has several."""
        if name in self._made_by:
            return name
        return next((each for each in self._shared.get(name, ()) if each in self._made_by), None)


def check_weights(
    source: str, revision: str | None, config: Any, *, trained_further: bool = False
) -> None:
    """Refuse the model at `source` where loading it with the transformers `config` would fail.

    `source` is a folder, a store's URL or a hub name; only headers are read. A model to be
    `trained_further` may lack tensors, such as a classifier's head: they start at random. Raises
    KdscaleError with the file that is damaged or missing, or the first tensor that does not fit.
    """
    headers = weight_headers(source, revision)
    if getattr(config, "quantization_config", None) is not None:
        return  # the quantiser decides what its tensors become
    stored = StoredTensors(config, headers)
    for name, shape in stored.shapes.items():
        wanted = stored.wanted.get(name, shape)
        if shape != wanted:
            raise KdscaleError(
                f"The weights of {source!r} do not fit its config: {name!r} is {list(shape)} in "
                f"{', '.join(stored.files_of(name))}, and the config asks for {list(wanted)}.",
                "Take config.json and *.safetensors from the same model; a classifier keeps its "
                "number of classes.",
            )
    missing = stored.missing()
    if missing and not (trained_further and stored.shapes):
        raise lacks_weights(source, config, missing)


def _shared_names(model: torch.nn.Module) -> dict[str, list[str]]:
    """Return all names of each tensor that has several, by each of them."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        names[id(tensor)].append(name)
    return {name: group for group in names.values() if len(group) > 1 for name in group}
