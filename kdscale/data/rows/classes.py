"""Classes of a corpus: names of its labels and their numbers."""

from collections.abc import Iterable, Sequence

from kdscale.config.data import LabelsConfig, standard
from kdscale.errors import KdscaleError

UNKNOWN_LABEL = -1
_SHOWN = 8


class Classes:
    """Class names in the order of their numbers; labels compare without case and outer blanks."""

    def __init__(self, names: Sequence[str], aliases: dict[str, str]) -> None:
        """KdscaleError where an alias means no class."""
        self.names = tuple(names)
        self._numbers = {standard(name): number for number, name in enumerate(names)}
        for alias, name in aliases.items():
            if standard(name) not in self._numbers:
                raise KdscaleError(
                    f"data.labels.aliases: {alias!r} is to mean {name!r}, which is no class.",
                    f"The classes are {_listed(self.names)}.",
                )
            self._numbers[standard(alias)] = self._numbers[standard(name)]

    def number(self, label: str | None) -> int:
        """Return the number of a document's label, -1 where it has none.

        Raises KdscaleError for an unknown one.
        """
        if label is None or not standard(label):
            return UNKNOWN_LABEL
        found = self._numbers.get(standard(label))
        if found is None:
            raise KdscaleError(
                f"A document has the label {label!r}, which is no class.",
                f"The classes are {_listed(self.names)}: add it to data.labels.classes, or to "
                "data.labels.aliases as another name of one of them.",
            )
        return found


def find_classes(config: LabelsConfig, labels: Iterable[str | None]) -> Classes:
    """Return the classes of the config, or those that the training documents' `labels` name.

    Raises KdscaleError where these are fewer than two.
    """
    if config.classes is not None:
        return Classes(config.classes, config.aliases)
    meant = {standard(alias): name for alias, name in config.aliases.items()}
    found: dict[str, str] = {}
    for label in labels:
        if label is not None and standard(label):
            name = meant.get(standard(label), label.strip())
            # The first spelling in the alphabet, in any order of documents.
            known = found.get(standard(name))
            found[standard(name)] = name if known is None else min(known, name)
    if len(found) < 2:
        raise KdscaleError(
            f"The training documents name {len(found)} classes in the field {config.field!r}: "
            f"{_listed(sorted(found.values()))}.",
            "Set data.labels.field to the column that holds the class, and check that it has at "
            "least two.",
        )
    return Classes([found[name] for name in sorted(found)], config.aliases)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
