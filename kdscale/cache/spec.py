"""Spec of a cache: a flat dict (teacher, tokenizer, codec, ...) that is checked at every opening.

Its fields: format, task, teacher, tokenizer, vocab_size, data, seq_len, codec (a dict),
temperature, dtype, rows, seed; classes, where rows are classified. A shard captured under another
identity, or a student with another tokenizer, would train on wrong targets without any error, so
every meeting compares and names what differs.
"""

import json
from typing import Any, Literal

from kdscale.errors import KdscaleError

FORMAT: Literal[5] = 5
"""Version of everything that a cache stores. A cache of another version is refused."""

Identity = dict[str, Any]


def has_labels(identity: Identity) -> bool:
    """Return whether the cache's rows bring their labels.

    Those of causal language models are the next tokens.
    """
    return identity.get("task", "causal-lm") != "causal-lm"


def check_cache_spec(found: Identity, expected: Identity) -> None:
    """KdscaleError listing every field of `expected` that `found` lacks or holds otherwise."""
    found, expected = _as_stored(found), _as_stored(expected)
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        lines = [
            f"  {name}: the cache has {json.dumps(found.get(name))}, "
            f"expected {json.dumps(expected[name])}"
            for name in differing
        ]
        raise KdscaleError(
            "The cache was made for something else:\n" + "\n".join(lines),
            "Make the config agree with the cache, or write another cache to another output.",
        )


def _as_stored(identity: Identity) -> Identity:
    """Return the identity as JSON gives it back, in which a tuple is a list."""
    stored: Identity = json.loads(json.dumps(identity))
    return stored
