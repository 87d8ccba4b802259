"""Sources of a student's tensors: those of its teacher, or of a model that it loads."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.models.init.families import Family
from kdscale.models.init.layers import TEACHER, Origin
from kdscale.models.init.width import Sizes, axes_of
from kdscale.models.meta_model import MetaModel, in_layer, layer_of


@dataclass(frozen=True)
class Source:
    """Start of one tensor of the student."""

    tensor: str  # its name in the model that the student starts from
    axes: tuple[str, ...] = ()  # of a tensor to be sliced
    layer: int | None = None  # of the student


def embedding_sources(mine: MetaModel, theirs: MetaModel) -> dict[str, Source]:
    """Return the sources of embedding and head alone, by the student's names.

    Raises KdscaleError where the student's hidden size is another than the teacher's.
    """
    pairs = {name: theirs.embedding.get(part) for part, name in mine.embedding.items()}
    sources = {}
    for name, other in (pairs | _head(mine, theirs)).items():
        if other is None:
            continue
        columns, have = mine.shapes[name][1:], theirs.shapes[other][1:]
        if columns != have:
            raise KdscaleError(
                f"copy_embeddings: the student's embeddings have {columns[0]} columns, the "
                f"teacher's {have[0]}.",
                f"Give the student the hidden size {have[0]}, or leave out copy_embeddings.",
            )
        sources[name] = Source(other)
    return sources


def all_sources(
    mine: MetaModel, theirs: MetaModel, layers: list[int] | None, origin: Origin = TEACHER
) -> dict[str, Source]:
    """Return the source of every tensor of the student, by the student's names.

    From the `layers` of `origin`, None for all as they are, and from what is in no layer. Raises
    KdscaleError where layers of several kinds get mixed up, or where there is no list of layers to
    choose from.
    """
    if layers is None:
        head = _head(mine, theirs)
        return {name: Source(head.get(name) or name) for name in mine.shapes}
    prefix = theirs.prefix
    if prefix is None or mine.count_layers(prefix) != len(layers):
        raise KdscaleError(
            f"No list of {len(layers)} layers was found in a {mine.kind}.",
            f"Start this student from `model` instead of `{origin.field}`.",
        )
    sources, head = {}, _head(mine, theirs)
    for name, shape in mine.shapes.items():
        layer = layer_of(name, prefix)
        other = head.get(name) or name
        if layer is not None:
            other = in_layer(name, prefix, layers[layer])
        if other not in theirs.shapes:
            raise KdscaleError(
                f"The student's tensor {name!r} would start from {other!r}, which the "
                f"{origin.name} lacks: its layers are of several kinds.",
                f"Choose {origin.field} whose kinds come in the {origin.name}'s order.",
            )
        if shape != (have := theirs.shapes[other]):
            raise KdscaleError(
                f"The student's tensor {name!r} is {list(shape)}, and the {origin.name}'s "
                f"{other!r} is {list(have)}: its size follows from the number of layers.",
                f"Start this student from `model` instead of `{origin.field}`.",
            )
        sources[name] = Source(other, layer=layer)
    _check_kinds(mine.settings, theirs.settings, prefix, layers, origin)
    return sources


def with_axes(
    sources: dict[str, Source],
    theirs: MetaModel,
    sizes: Sizes,
    family: Family,
    origin: Origin = TEACHER,
) -> dict[str, Source]:
    """Return the sources of a narrower student; `sizes` and `family` are those of `origin`.

    Raises KdscaleError for a tensor that cannot be sliced.
    """
    shapes = theirs.shapes
    return {
        name: replace(
            source, axes=axes_of(source.tensor, shapes[source.tensor], sizes, family, origin)
        )
        for name, source in sources.items()
    }


def _head(mine: MetaModel, theirs: MetaModel) -> dict[str, str | None]:
    """Return the sources of the tensors that only the student's head has.

    Of a tied model they are the embedding's.
    """
    shared = mine.embedding.values()
    return {name: theirs.head.get(p) for p, name in mine.head.items() if name not in shared}


def _check_kinds(
    mine: Mapping[str, Mapping[str, Any]],
    theirs: Mapping[str, Mapping[str, Any]],
    prefix: str,
    layers: list[int],
    origin: Origin,
) -> None:
    """Refuse layers of other kinds than those of `origin` that they start from.

    With other attention, other positions, experts or none. `mine` and `theirs` are the settings of
    both models' modules.
    """
    for name, settings in mine.items():
        layer = layer_of(f"{name}.", prefix)
        if layer is None:
            continue
        start = layers[layer]
        other = theirs.get(in_layer(f"{name}.", prefix, start).rstrip("."), {})
        for key in settings.keys() | other.keys():
            pair = settings.get(key), other.get(key)
            if pair[0] != pair[1] and pair != (layer, start):  # a layer may know its own number
                raise KdscaleError(
                    f"The student's layer {layer} would start from the {origin.name}'s {start}, "
                    f"which is of another kind: {key} of {name} is {pair[0]!r} in the one and "
                    f"{pair[1]!r} in the other.",
                    f"Choose {origin.field} whose kinds come in the {origin.name}'s order.",
                )


@dataclass
class Group:
    """Some of the student's tensors, with the numbers of their parameters by how they start."""

    name: str  # "embedding", "layer 3", "norms", "other" or "head"
    source: str | None = None  # where it starts from, such as "teacher's layer 7"
    tensors: int = 0  # none in a head that is the embedding
    copied: int = 0  # of tensors taken whole
    sliced: int = 0  # of tensors that are a part of a larger one
    random: int = 0  # drawn by the seed

    def __str__(self) -> str:
        if not self.tensors:
            return f"{self.name}: shared with the embedding"
        origin = f" <- {self.source}" if self.source else ""
        tensors = f"{self.tensors} tensor{'s' * (self.tensors > 1)}"
        return f"{self.name}{origin}: {tensors}, parameters {_counts([self])}"


@dataclass(frozen=True)
class Provenance:
    """Summary of a student's start; each of its parameters is counted in one group, once."""

    groups: tuple[Group, ...]

    def __str__(self) -> str:
        """Return a line for all, then one a group."""
        first = f"initial parameters: {_counts(self.groups)}"
        return "\n".join([first, *(f"  {group}" for group in self.groups)])


def trace(
    mine: MetaModel,
    theirs: MetaModel | None,
    sources: dict[str, Source],
    origin: Origin = TEACHER,
) -> Provenance:
    """Return the provenance of a student whose tensors start from `sources` of `origin`."""
    groups: dict[str, Group] = {}
    for name, shape in mine.shapes.items():
        kind, source = mine.group_of(name), sources.get(name)
        group = groups.setdefault(kind, Group(kind))
        group.tensors += 1
        if source is None or theirs is None:
            group.random += prod(shape)
            continue
        group.source = f"{origin.name}'s {theirs.group_of(source.tensor)}"
        have = theirs.shapes[source.tensor]
        if shape[1:] == have[1:] and shape[:1] > have[:1]:
            # An embedding padded to more rows than there.
            group.copied += prod(have)
            group.random += prod(shape) - prod(have)
        elif shape == have:
            group.copied += prod(shape)
        else:
            group.sliced += prod(shape)
    if mine.tied:
        groups.setdefault("head", Group("head"))
    return Provenance(tuple(groups.values()))


def _counts(groups: list[Group] | tuple[Group, ...]) -> str:
    totals = {
        start: sum(getattr(group, start) for group in groups)
        for start in ("copied", "sliced", "random")
    }
    return ", ".join(f"{count:,} {start}" for start, count in totals.items() if count)
