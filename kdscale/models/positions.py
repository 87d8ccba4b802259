"""Number of tokens that a model takes.

Some architectures look positions up in a table and fail beyond its end; of these, RoBERTa and its
relatives keep the first positions for padding. Others, with rotary or relative positions, take any
number, though what they know ends with the lengths that they were trained on. A config does not say
which of them its architecture is. So a small copy of the model, one layer of few dimensions and a
short table, is run on texts of growing length.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
import transformers

from kdscale.errors import KdscaleError
from kdscale.models.init.layers import keep_layers

POSITION_FIELDS = ("max_position_embeddings", "max_seq_len")
"""Names of the number of positions in the configs of transformers."""

# What the small copy has of each, where its config has such a field.
_SMALL = {
    **dict.fromkeys(("hidden_size", "embedding_size", "word_embed_proj_dim"), 256),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim"), 32),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("vocab_size", "entity_vocab_size"), 16),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id"), 2),
    "head_dim": 64,
}
_TABLE = 24  # positions of the small copy
_TOKEN = 9
_MOST_PARAMETERS = 20_000_000


# Found by trial, by a config's class and content.
_FOUND: dict[tuple[type, str], int | None] = {}


def claimed_positions(config: Any) -> int | None:
    """Return the positions that a transformers `config` gives its model; None without a number."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in POSITION_FIELDS)
    return next((number for number in found if isinstance(number, int)), None)


def lost_positions(config: Any) -> int:
    """Return how many of the positions of the model of `config` are not for tokens."""
    return _lost(config) or 0


def usable_positions(config: Any) -> int | None:
    """Return the tokens that the model of a transformers `config` takes.

    None where no table ends, or where that cannot be found out. The class is the one that the
    config names.
    """
    claimed, lost = claimed_positions(config), _lost(config)
    return None if claimed is None or lost is None else claimed - lost


def check_positions(config: Any, length: int, what: str) -> None:
    """Refuse `length` tokens for a model that looks positions up in a shorter table.

    And for one that scales all positions of a sequence longer than a limit. `what` names the model
    in the message. Raises KdscaleError.
    """
    for kind, limit in _row_limits(config):
        if length > limit:
            raise KdscaleError(
                f"The {what}, a {config.model_type!r}, scales the positions of sequences of more "
                f"than {limit} tokens ({kind}), those of short documents in them too: in sequences "
                f"of {length} tokens a document would get other logits than alone.",
                f"Set data.seq_len to at most {limit}.",
            )
    usable = usable_positions(config)
    if usable is None or length <= usable:
        return
    lost = lost_positions(config)
    kept = f": it keeps {lost} of them for padding." if lost else "."
    raise KdscaleError(
        f"The {what}, a {config.model_type!r} of {usable + lost} positions, cannot take {length} "
        f"tokens{kept}",
        f"Set data.seq_len to at most {usable}, or choose a model with more positions. A "
        "classifier takes longer documents in chunks: data.long_documents `hierarchical`.",
    )


def position_notes(config: Any, length: int, what: str) -> list[str]:
    """Return a note for the user if `length` tokens are more than the model was made for."""
    claimed = claimed_positions(config)
    if claimed is None or usable_positions(config) is not None:
        return []
    extent = max([claimed, *_scaled(config.get_text_config(), claimed)])
    if length <= extent:
        return []
    return [
        f"Sequences of {length:,} tokens are longer than the {extent:,} positions that the {what} "
        f"({config.model_type}) was made for: what it says beyond them may be worth little."
    ]


def _row_limits(config: Any) -> Iterator[tuple[str, int]]:
    """Yield each kind of scaling that goes by a batch's longest sequence, and where it begins."""
    text = config.get_text_config()
    for each in _rope_parameters(text):
        kind = each.get("rope_type")
        limit = claimed_positions(config)
        if kind == "longrope":
            limit = each.get("original_max_position_embeddings") or limit
        if kind in ("longrope", "dynamic") and limit is not None:
            yield kind, limit


def _rope_parameters(text: Any) -> list[dict[str, Any]]:
    """Return the rotary parameters of the config, and of each kind of its layers."""
    parameters = getattr(text, "rope_parameters", None) or {}
    return [parameters, *(each for each in parameters.values() if isinstance(each, dict))]


def _scaled(text: Any, claimed: int) -> Iterator[int]:
    """Yield how far the scaling of rotary positions reaches, where the config has one."""
    for each in _rope_parameters(text):
        if each.get("factor"):
            start = each.get("original_max_position_embeddings") or claimed
            yield int(start * each["factor"])


def _lost(config: Any) -> int | None:
    """Return how many positions are not for tokens; None if no table ends, or it is not known."""
    name = next(iter(config.architectures or ()), "")
    if claimed_positions(config) is None or not hasattr(transformers, name):
        return None
    key = (type(config), config.to_json_string())
    if key not in _FOUND:
        _FOUND[key] = _try_lost(config)
    return _FOUND[key]


def _try_lost(config: Any) -> int | None:
    # A table that begins behind the padding id loses positions for each lower id, seen with two.
    one, three = _lost_with(config, 1), _lost_with(config, 3)
    if one is None or three is None:
        return None
    each = (three - one) // 2
    padding = getattr(config.get_text_config(), "pad_token_id", None) or 0
    return one - each + each * padding


def _lost_with(config: Any, padding: int) -> int | None:
    """Return the positions that are not for tokens in a small copy with this padding id."""
    try:
        model = _small_model(config, padding)
    except Exception:  # sizes that this architecture does not take, whatever they lead to
        return None
    if model is None or not _takes(model, 1) or _takes(model, 4 * _TABLE):
        return None
    most = next((n for n in range(_TABLE, 0, -1) if _takes(model, n)), 0)
    return _TABLE - most


def _small_model(config: Any, padding: int) -> Any | None:
    """Return the copy; None where even that is large.

    Made without transformers' loaders, which would partition it where ZeRO-3 is on.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    sizes = _SMALL | {"pad_token_id": padding} | dict.fromkeys(POSITION_FIELDS, _TABLE)
    keep_layers(text, [0])
    for name, size in sizes.items():
        if getattr(text, name, None) is not None or name == "pad_token_id":
            with suppress(AttributeError):  # a property
                setattr(text, name, size)
    small._attn_implementation = "eager"
    build = getattr(transformers, config.architectures[0])
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build(copy.deepcopy(small)).parameters())
    if parameters > _MOST_PARAMETERS:
        return None
    # Whoever asks has its own use for the random numbers.
    with torch.random.fork_rng(devices=[]):
        return build(small).eval()


@torch.no_grad()
def _takes(model: Any, length: int) -> bool:
    """Return whether a forward of so many tokens succeeds."""
    ids = torch.full((1, length), _TOKEN)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    known = inspect.signature(model.forward).parameters
    try:
        model(**{name: value for name, value in inputs.items() if name in known})
    except Exception:  # whatever the architecture's arithmetic meets
        return False
    return True
