"""How two tokenizers differ, in a sentence."""

import json
from pathlib import Path
from typing import Any

from kdscale.data.tokenizer import TOKENIZER_FILE


def describe_difference(theirs: bytes, mine: Path) -> str:
    """What differs between the cache's tokenizer.json and that in the folder `mine`: the first id,
    else the first setting."""
    there = json.loads(theirs)
    here = json.loads((mine / TOKENIZER_FILE).read_text(encoding="utf-8"))
    their_ids, my_ids = _tokens(there), _tokens(here)
    differing = sorted(
        number
        for number in their_ids.keys() | my_ids.keys()
        if their_ids.get(number) != my_ids.get(number)
    )
    if differing:
        first = differing[0]
        sizes = f"{len(their_ids):,} ids in the cache, {len(my_ids):,} here"
        return (
            f"id {first} is {_shown(their_ids, first)} in the cache and {_shown(my_ids, first)} "
            f"here, the first of {len(differing):,} that differ ({sizes})"
        )
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            return f"all {len(my_ids):,} ids are the same, but {_setting(name, there, here)}"
    return "the same ids and settings, in another file: saved by another version of transformers"


def _setting(name: str, there: dict[str, Any], here: dict[str, Any]) -> str:
    have, want = there.get(name), here.get(name)
    if name == "model" and isinstance(have, dict) and isinstance(want, dict):
        keys = [key for key in have.keys() | want.keys() if have.get(key) != want.get(key)]
        return f"`model.{min(keys)}` of tokenizer.json differs"
    if name == "added_tokens" and isinstance(have, list) and isinstance(want, list):
        for one, other in zip(have, want, strict=False):
            if one != other:
                return f"the special token {one['content']!r} has other settings"
    return f"`{name}` of tokenizer.json is {_short(have)} in the cache and {_short(want)} here"


def _tokens(tokenizer: dict[str, Any]) -> dict[int, str]:
    """The tokens by id, added ones too."""
    vocabulary = tokenizer["model"].get("vocab", {})
    if isinstance(vocabulary, dict):
        found = {int(number): token for token, number in vocabulary.items()}
    else:
        # Unigram models list (token, score) by id.
        found = {number: token for number, (token, _) in enumerate(vocabulary)}
    return found | {each["id"]: each["content"] for each in tokenizer.get("added_tokens", ())}


def _shown(tokens: dict[int, str], number: int) -> str:
    return repr(tokens[number]) if number in tokens else "no token"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
