"""Pretrained tokenizers, loaded as their `tokenizer.json` has them."""

from collections.abc import Mapping
from typing import Any

from kdscale.errors import KdscaleError

_FILE = "tokenizer.json"
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_NAMED = 5


def vocabulary_size(vocabulary: Mapping[str, int]) -> int:
    """Return the rows that an embedding needs: the largest id + 1, as ids may have gaps."""
    return max(vocabulary.values(), default=-1) + 1


def load_tokenizer(source: str, revision: str | None = None) -> Any:
    """Load the transformers tokenizer of a folder or hub name.

    Some classes (Qwen2's, GPT-2's, Gemma's, BERT's) give special tokens that `tokenizer.json` does
    not have ids beyond the model's embedding, or bring another vocabulary. The tokenizer is then
    loaded without its class, from `tokenizer.json` and `tokenizer_config.json`. Raises KdscaleError
    where it cannot be loaded.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    own = _own_vocabulary(source, revision)
    try:
        found = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # classes raise all sorts of it for files of another class
        if own is None:
            raise _cannot_load(source, error) from error
        found = None
    if own is None or (found is not None and _is_own(found.get_vocab(), own)):
        return found
    try:
        plain = PreTrainedTokenizerFast.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    except Exception as error:
        raise _cannot_load(source, error) from error
    if found is None:
        return plain
    for role in _ROLES:
        name = f"{role}_token"
        token = getattr(found, name)
        if getattr(plain, name) is None and token in own:
            setattr(plain, name, token)
    return plain


def _is_own(vocabulary: Mapping[str, int], own: Mapping[str, int]) -> bool:
    """Tell whether a vocabulary has the ids of `own` as they are, and none beyond them."""
    is_kept = all(vocabulary.get(token) == number for token, number in own.items())
    return is_kept and not beyond(vocabulary, vocabulary_size(own))


def beyond(vocabulary: Mapping[str, int], size: int) -> dict[str, int]:
    """Return the tokens whose id is not below `size`, in their order."""
    found = sorted((number, token) for token, number in vocabulary.items() if number >= size)
    return {token: number for number, token in found}


def require_embeddings(tokenizer: Any, rows: int, source: str, revision: str | None = None) -> None:
    """Refuse a tokenizer with ids beyond the `rows` of the embedding of `source`."""
    missing = beyond(tokenizer.get_vocab(), rows)
    if not missing:
        return
    own = _own_vocabulary(source, revision) or {}
    shown = [f"{number} {token!r}" for token, number in missing.items()][:_NAMED]
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    added = [token for token in missing if token not in own]
    where = (
        f"{_FILE} has none of these: they are in tokenizer_config.json or its like only. Take them "
        "out there, where no text yields them"
        if own and len(added) == len(missing)
        else "Use the tokenizer that the model was trained with"
    )
    raise KdscaleError(
        f"The teacher has {rows} embeddings, and its tokenizer has ids beyond them: "
        f"{', '.join(shown)}{more}.",
        f"{where}, or give the model more embeddings (transformers' resize_token_embeddings).",
    )


def _own_vocabulary(source: str, revision: str | None) -> dict[str, int] | None:
    """Return the vocabulary of `tokenizer.json` with added tokens; None if there is none."""
    from tokenizers import Tokenizer
    from transformers.utils import cached_file

    try:
        path = cached_file(source, _FILE, revision=revision)
    except (OSError, ValueError):
        return None  # AutoTokenizer says what is wrong, if something is.
    try:
        found: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception:  # plain ones of tokenizers, for a damaged file; the same
        return None
    return found


def _cannot_load(source: str, error: Exception) -> KdscaleError:
    return KdscaleError(
        f"transformers can load no tokenizer of {source!r}: {error}",
        "Give a folder with tokenizer files, or a hub name that this machine can reach.",
    )
