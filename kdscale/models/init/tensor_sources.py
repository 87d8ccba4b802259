"""Which of the teacher's tensors each tensor of a student starts from."""

from dataclasses import dataclass, replace

from kdscale.errors import KdscaleError
from kdscale.models.init.families import Family
from kdscale.models.init.layers import check_kinds, in_layer, layer_of
from kdscale.models.init.width import Sizes, axes_of
from kdscale.models.meta_model import Skeleton


@dataclass(frozen=True)
class Source:
    """Where one tensor of the student starts."""

    tensor: str  # the teacher's name of it
    axes: tuple[str, ...] = ()  # of a tensor to be sliced
    layer: int | None = None  # of the student


def embedding_sources(mine: Skeleton, theirs: Skeleton) -> dict[str, Source]:
    """Embedding and head alone, by the student's names. Raises KdscaleError where the student's
    hidden size is another than the teacher's."""
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


def all_sources(mine: Skeleton, theirs: Skeleton, layers: list[int]) -> dict[str, Source]:
    """Every tensor of the student, from the teacher's `layers` and from what is no layer, by the
    student's names. Raises KdscaleError where layers of several kinds get mixed up, or where there
    is no list of layers to choose from."""
    prefix = theirs.prefix
    if prefix is None or mine.count_layers(prefix) != len(layers):
        raise KdscaleError(
            f"No list of {len(layers)} layers was found in a {mine.kind}.",
            "Start this student from `model` instead of `teacher_layers`.",
        )
    sources, head = {}, _head(mine, theirs)
    for name, shape in mine.shapes.items():
        layer = layer_of(name, prefix)
        other = head.get(name) or name
        if layer is not None:
            other = in_layer(name, prefix, layers[layer])
        if other not in theirs.shapes:
            raise KdscaleError(
                f"The student's tensor {name!r} would start from {other!r}, which the teacher has "
                "not: its layers are of several kinds.",
                "Choose teacher_layers whose kinds come in the teacher's order.",
            )
        if shape != (have := theirs.shapes[other]):
            raise KdscaleError(
                f"The student's tensor {name!r} is {list(shape)}, and the teacher's {other!r} is "
                f"{list(have)}: its size follows from the number of layers.",
                "Start this student from `model` instead of `teacher_layers`.",
            )
        sources[name] = Source(other, layer=layer)
    check_kinds(mine.settings, theirs.settings, prefix, layers)
    return sources


def with_axes(
    sources: dict[str, Source], theirs: Skeleton, sizes: Sizes, family: Family
) -> dict[str, Source]:
    """The sources of a narrower student, `sizes` and `family` being the teacher's. Raises
    KdscaleError for a tensor that cannot be sliced."""
    shapes = theirs.shapes
    return {
        name: replace(source, axes=axes_of(source.tensor, shapes[source.tensor], sizes, family))
        for name, source in sources.items()
    }


def _head(mine: Skeleton, theirs: Skeleton) -> dict[str, str | None]:
    """Sources of what the student's head has for itself; of a tied teacher, the embedding."""
    shared = mine.embedding.values()
    return {name: theirs.head.get(p) for p, name in mine.head.items() if name not in shared}
