"""Paths of a config: every field of the type `Place`, wherever it is nested.

`kdscale run` and `kdscale submit` make local paths absolute with `resolve_places`, because workers
and jobs start in other folders. A relative name in a field that may also hold a name on the Hugging
Face hub is a path if it starts with `.`, `/` or `~`, or if a folder of that name exists here; else
it is a hub name and stays as it is.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from kdscale.config.base import PLACE, Config, PlaceForm

Kind = TypeVar("Kind", bound=Config)
Change = Callable[[str, str, PlaceForm], str]


@dataclass(frozen=True)
class LocalPlace:
    """A local path in a config."""

    field: str
    """Its name in the config, such as `data.evaluate.law.path`."""

    given: str
    """The config's text, with ~ expanded."""

    path: str
    """The same, absolute."""

    form: PlaceForm

    @property
    def is_relative(self) -> bool:
        """True if its meaning depends on the current folder."""
        return not os.path.isabs(self.given)


def map_places(config: Kind, change: Change) -> Kind:
    """Return `config` with `change(name, value, form)` in place of the value of each Place."""
    return _map_config(config, "", change)


def resolve_places(config: Kind, folder: Path | None = None) -> tuple[Kind, list[LocalPlace]]:
    """Return the config with absolute local paths, and a list of these paths.

    They are taken from `folder`, the current one by default. URLs and hub names stay as they are.
    """
    base, found = folder or Path.cwd(), list[LocalPlace]()

    def absolute(field: str, value: str, form: PlaceForm) -> str:
        if form == "text" or "://" in value or (form == "hub" and not _is_folder(value, base)):
            return value
        found.append(LocalPlace(field, value, os.path.abspath(base / value), form))
        return found[-1].path

    return map_places(config, absolute), found


def without_folders(config: Kind) -> Kind:
    """Return the config with absolute local paths cut down to their last part.

    For fingerprints of data that also cover the files themselves: a folder may then be moved.
    """
    return map_places(
        config, lambda _, value, __: Path(value).name if os.path.isabs(value) else value
    )


def _is_folder(name: str, base: Path) -> bool:
    """Return whether `name`, which may be a hub name, is a path."""
    return name.startswith((".", "/", "~")) or (base / name).is_dir()


def _map_config(config: Kind, name: str, change: Change) -> Kind:
    changed = {}
    for field, info in type(config).model_fields.items():
        hint: Any = info.annotation
        if info.metadata:
            hint = Annotated[hint, *info.metadata]
        before = getattr(config, field)
        path = f"{name}.{field}" if name else field
        after = _map(before, [hint], path, config.place_form(field), change)
        if after is not before:
            changed[field] = after
    return config.model_copy(update=changed) if changed else config


def _map(value: Any, hints: list[Any], name: str, form: PlaceForm, change: Change) -> Any:
    """Return the value, whose type is one of `hints`, with its places changed."""
    if isinstance(value, Config):
        return _map_config(value, name, change)
    kinds = [kind for hint in hints for kind in _alternatives(hint)]
    if isinstance(value, str):
        new = change(name, value, form) if any(is_place for _, is_place in kinds) else value
        return value if new == value else new
    if not isinstance(value, dict | list | tuple):
        return value
    arguments = [get_args(kind) for kind, _ in kinds if get_origin(kind) is type(value)]
    if isinstance(value, dict):
        inner = [each[1] for each in arguments]
        mapped = {k: _map(v, inner, f"{name}.{k}", form, change) for k, v in value.items()}
        is_same = all(mapped[key] is value[key] for key in value)
        return value if is_same else mapped
    inner = [hint for each in arguments for hint in each if hint is not Ellipsis]
    items = [_map(v, inner, f"{name}.{n}", form, change) for n, v in enumerate(value)]
    is_same = all(new is old for new, old in zip(items, value, strict=True))
    return value if is_same else type(value)(items)


def _alternatives(hint: Any) -> Iterator[tuple[Any, bool]]:
    """Yield the types that a value of the type `hint` may have, each with whether it is a Place."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *marks = get_args(hint)
        for kind, is_place in _alternatives(inner):
            yield kind, is_place or PLACE in marks
    elif origin in (Union, UnionType):
        for each in get_args(hint):
            yield from _alternatives(each)
    else:
        yield hint, False
