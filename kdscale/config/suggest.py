"""Suggestions for unknown keys of a config: a field with a similar name, there or in a section."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, get_args

from kdscale.config.base import Config

_SIMILAR = 0.6  # of `difflib`: more is nearer


def suggest_field(kind: type[Config], location: Sequence[str | int]) -> str | None:
    """Return the field that an unknown key of a `kind` may mean; None where none is similar.

    `location` is pydantic's: the names of sections, with the tags of unions and the indices of
    lists between them, and the key. A field of the same section comes as its name, one of another
    section with its whole path.
    """
    *path, key = (str(part) for part in location if part != "")
    siblings = {name for section in _sections(kind, path) for name in section.model_fields}
    if found := get_close_matches(key, siblings, 1, _SIMILAR):
        return found[0]
    elsewhere = list(field_paths(kind))
    names = get_close_matches(key, {each[-1] for each in elsewhere}, 1, _SIMILAR)
    alike = [each for each in elsewhere if each[-1] in names]
    if not alike:
        return None
    nearest: tuple[str, ...] = max(alike, key=lambda each: (_in_common(each, path), -len(each)))
    return ".".join(nearest)


def _sections(kind: type[Config], path: Sequence[str]) -> set[type[Config]]:
    """Return the sections that `path` may lead to; more than one in a union."""
    found = {kind}
    for part in path:
        inner = {
            model
            for section in found
            if part in section.model_fields
            for model in _models(section.model_fields[part].annotation)
        }
        if not inner:  # The tag of a union, or the index of an item.
            inner = {each for each in found if _has_tag(each, part)}
        found = inner or found
    return found


def _has_tag(section: type[Config], tag: str) -> bool:
    return "kind" in section.model_fields and section.model_fields["kind"].default == tag


def field_paths(kind: type[Config], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every field of a `kind`, below `path`."""
    for name, field in kind.model_fields.items():
        yield (*path, name)
        for model in _models(field.annotation):
            yield from field_paths(model, (*path, name))


def _models(annotation: Any) -> Iterator[type[Config]]:
    """Yield the sections among the types of a field."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for each in get_args(annotation):
        yield from _models(each)


def _in_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many names at the beginning are the same."""
    pairs = zip(one, other, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
