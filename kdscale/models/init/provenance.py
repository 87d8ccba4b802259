"""Where a student's first weights come from, by groups of parameters."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from kdscale.models.init.tensor_sources import Source
from kdscale.models.meta_model import Skeleton

Start = Literal["copied", "sliced", "random"]
_STARTS: tuple[Start, ...] = ("copied", "sliced", "random")


@dataclass(frozen=True)
class Group:
    """Some of the student's tensors. `copied`, `sliced` and `random` count parameters: of tensors
    taken whole from the teacher, of those taken as a part of a larger one, and drawn by the seed.
    A head without tensors of its own is the embedding."""

    name: str  # "embedding", "layer 3", "norms", "other" or "head"
    source: str | None = None  # the teacher's group, such as "layer 7"
    tensors: int = 0
    copied: int = 0
    sliced: int = 0
    random: int = 0

    def __str__(self) -> str:
        if not self.tensors:
            return f"{self.name}: shared with the embedding"
        origin = f" <- teacher's {self.source}" if self.source else ""
        tensors = f"{self.tensors} tensor{'s' * (self.tensors > 1)}"
        counts = [f"{getattr(self, s):,} {s}" for s in _STARTS if getattr(self, s)]
        return f"{self.name}{origin}: {tensors}, parameters {', '.join(counts)}"


@dataclass(frozen=True)
class Provenance:
    """All groups; each parameter of the student is counted in one of them, once."""

    groups: tuple[Group, ...]

    def __str__(self) -> str:
        """A line for all, then one a group."""
        totals = [(s, sum(getattr(g, s) for g in self.groups)) for s in _STARTS]
        first = "initial parameters: " + ", ".join(f"{n:,} {s}" for s, n in totals if n)
        return "\n".join([first, *(f"  {group}" for group in self.groups)])


def trace(mine: Skeleton, theirs: Skeleton | None, sources: dict[str, Source]) -> Provenance:
    """The provenance of a student whose tensors start from `sources` of the teacher."""
    groups: dict[str, Group] = {}
    for name, shape in mine.shapes.items():
        kind = mine.group_of(name)
        group = groups.get(kind, Group(kind))
        source = sources.get(name)
        if source is None or theirs is None:
            counts: dict[Start, int] = {"random": prod(shape)}
        else:
            counts = dict(_counts(shape, theirs.shapes[source.tensor]))
            group = replace(group, source=theirs.group_of(source.tensor))
        added = {start: getattr(group, start) + n for start, n in counts.items()}
        groups[kind] = replace(group, tensors=group.tensors + 1, **added)
    if mine.tied:
        groups.setdefault("head", Group("head"))
    return Provenance(tuple(groups.values()))


def _counts(mine: tuple[int, ...], theirs: tuple[int, ...]) -> Iterator[tuple[Start, int]]:
    """Parameters by how they start, of a tensor of shape `mine` from one of shape `theirs`."""
    if mine[1:] == theirs[1:] and mine[:1] > theirs[:1]:
        # An embedding padded to more rows than the teacher's.
        yield "copied", prod(theirs)
        yield "random", prod(mine) - prod(theirs)
    else:
        yield "copied" if mine == theirs else "sliced", prod(mine)
