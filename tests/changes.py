"""Changes of a config's tree by dotted keys, as keyword arguments."""

from typing import Any


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Set `changes` in the tree, keys with `__` for the dot; None takes a field out."""
    for key, value in changes.items():
        section = tree
        *parents, last = key.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        if value is None:
            section.pop(last, None)
        else:
            section[last] = value
    return tree
