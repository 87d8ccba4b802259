"""Origin of a cache, stored beside it: in full what its identity holds as digests.

A digest says that a tokenizer is another one, and not which of its ids. So the tokenizer itself is
kept, and what is known of teacher and rows. No part of the identity: caches made before there was
an origin have none.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from kdscale.cache.spec import Identity
from kdscale.store import Store

_FOLDER = "origin"
_FACTS = f"{_FOLDER}/facts.json"
_TOKENIZER = f"{_FOLDER}/tokenizer.json"


def write_origin(store: Store, facts: dict[str, Any], tokenizer: Path) -> None:
    """Put `facts` and the files of the tokenizer's folder to the cache, unless they are there."""
    if not store.exists(_FACTS):
        for file in sorted(tokenizer.iterdir()):
            if file.is_file():
                store.put(f"{_FOLDER}/{file.name}", file.read_bytes())
        store.put(_FACTS, json.dumps(facts, indent=1).encode())


def read_facts(store: Store) -> dict[str, Any]:
    """Return the facts of the cache in `store`; none of one without an origin."""
    try:
        found: dict[str, Any] = json.loads(store.get(_FACTS))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def tokenizer_folder(store: Store, folder: Path) -> Path | None:
    """Write the cache's tokenizer to the empty `folder`; return it, None where there is none."""
    names = [key.removeprefix(f"{_FOLDER}/") for key in store.list(f"{_FOLDER}/")]
    if Path(_TOKENIZER).name not in names:
        return None
    for name in names:
        if f"{_FOLDER}/{name}" != _FACTS:
            (folder / name).write_bytes(store.get(f"{_FOLDER}/{name}"))
    return folder


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
