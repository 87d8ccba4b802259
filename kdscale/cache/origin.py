"""Origin of a cache, stored beside it: in full what its identity holds as digests.

A digest says that a tokenizer is another one, and not which of its ids. So the tokenizer itself is
kept, and what is known of teacher and rows. No part of the identity: caches made before there was
an origin have none.
"""

import hashlib
import json
from typing import Any

from kdscale.cache.spec import Identity
from kdscale.store import Store

_FACTS = "origin/facts.json"
_TOKENIZER = "origin/tokenizer.json"


def write_origin(store: Store, facts: dict[str, Any], tokenizer_json: bytes) -> None:
    """Put `facts` and the tokenizer's file to the cache in `store`, unless they are there."""
    if not store.exists(_FACTS):
        store.put(_TOKENIZER, tokenizer_json)
        store.put(_FACTS, json.dumps(facts, indent=1).encode())


def read_facts(store: Store) -> dict[str, Any]:
    """Return the facts of the cache in `store`; none of one without an origin."""
    try:
        found: dict[str, Any] = json.loads(store.get(_FACTS))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def read_tokenizer(store: Store, identity: Identity) -> bytes | None:
    """Return the tokenizer.json of the cache in `store`.

    None where it is missing or another one.

    It must be that of the cache's `identity`.
    """
    try:
        found = store.get(_TOKENIZER)
    except FileNotFoundError:
        return None
    return found if hashlib.sha256(found).hexdigest() == identity.get("tokenizer") else None
