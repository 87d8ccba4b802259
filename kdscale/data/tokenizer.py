"""Tokenizer of teacher and student: trained here, or the teacher's own.

Either way the result is a folder that `AutoTokenizer` loads, and its `tokenizer.json` is all that
the Ray tasks need: they use the `tokenizers` library alone, because importing transformers takes
seconds in every worker.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdscale.config.chat import ChatConfig
from kdscale.data.chat.answers import Rendering, answer_tokens, check_template, render_answers
from kdscale.data.chat.messages import Conversation, load
from kdscale.data.chat.template import (
    CHATML,
    CHATML_TOKENS,
    CannotRenderError,
    ChatTemplate,
    contains_special_token,
    make_template,
    read_template,
)
from kdscale.data.chat.training import with_training
from kdscale.data.pretrained_tokenizer import load_tokenizer, vocabulary_size
from kdscale.errors import KdscaleError

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class TokenizerInfo:
    """Facts about a tokenizer, kept in the manifest.

    A document is [start_id] + its tokens + [end_id]; a conversation is as its template writes it.
    """

    vocab_size: int
    sha256: str
    start_id: int
    end_id: int
    pad_id: int
    mask_id: int | None = None
    chat: ChatTemplate | None = None  # where documents are conversations

    @property
    def special_ids(self) -> dict[str, int]:
        """bos, eos and pad ids, as transformers' configs call them."""
        ids = {"bos": self.start_id, "eos": self.end_id, "pad": self.pad_id}
        return {f"{role}_token_id": number for role, number in ids.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        chat = {} if self.chat is None else {"chat": self.chat.as_dict()}
        return asdict(self) | chat

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TokenizerInfo":
        """Invert `as_dict`, also after JSON."""
        chat = values["chat"]
        return cls(**{**values, "chat": None if chat is None else ChatTemplate.from_dict(chat)})


class Encoded(NamedTuple):
    """A document as its tokens."""

    tokens: np.ndarray  # [n] int32; none of a conversation that cannot be rendered
    byte_count: int  # UTF-8, of the text that the targets stand for
    targets: np.ndarray | None = None  # [n] bool: what is to be predicted; None: all but the first


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    folder: Path,
    *,
    masks: bool = False,
    chat: ChatConfig | None = None,
) -> TokenizerInfo:
    """Train a byte-level BPE on `texts` and write it to `folder`.

    One special token is start, end and padding; another one the mask, where it `masks`. For `chat`
    there are those of ChatML, with a template, and the one that ends a turn is the end. Any text
    can be encoded and decoded without loss. The same texts give the same file, whatever their order
    or the number of threads. Texts too few for `vocab_size` give a smaller vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [END_OF_TEXT, *([MASK] if masks else []), *(CHATML_TOKENS if chat else [])]
    start, end = CHATML_TOKENS if chat else (END_OF_TEXT, END_OF_TEXT)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=END_OF_TEXT,
        **({"mask_token": MASK} if masks else {}),
        clean_up_tokenization_spaces=False,
    )
    template = None if chat is None else _set_template(whole, chat, CHATML)
    whole.save_pretrained(folder)
    ids: dict[str, int] = tokenizer.get_vocab()
    info = _info(folder, vocabulary_size(ids), ids[start], ids[end], ids[END_OF_TEXT])
    return replace(info, mask_id=tokenizer.token_to_id(MASK) if masks else None, chat=template)


def adopt_tokenizer(
    source: Path | str, folder: Path, *, chat: ChatConfig | None = None, owner: str = "teacher"
) -> TokenizerInfo:
    """Write the tokenizer in `source`, of the model `owner`, to `folder`, without other files.

    For `chat`, the config's template replaces its own, if there is one. Raises KdscaleError where
    it cannot be loaded, has no end-of-text token, or no template in which answers can be found.
    """
    tokenizer = load_tokenizer(str(source))
    if not tokenizer.is_fast:
        raise KdscaleError(
            f"The {owner}'s tokenizer in {str(source)!r} has no `tokenizer.json` form.",
            f"Convert it to a fast tokenizer and save it beside the {owner}'s weights.",
        )
    # Encoders call the two ends of a text otherwise.
    end_id = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
    if end_id is None:
        raise KdscaleError(
            f"The {owner}'s tokenizer in {str(source)!r} names no end-of-text token.",
            "Set `eos_token` in its tokenizer_config.json: documents are separated by it.",
        )
    template = None if chat is None else _set_template(tokenizer, chat, tokenizer.chat_template)
    tokenizer.save_pretrained(folder)
    start_id = _first(tokenizer.bos_token_id, tokenizer.cls_token_id, end_id)
    pad_id = _first(tokenizer.pad_token_id, end_id)
    assert start_id is not None
    assert pad_id is not None
    info = _info(folder, vocabulary_size(tokenizer.get_vocab()), start_id, end_id, pad_id)
    return replace(info, mask_id=tokenizer.mask_token_id, chat=template)


def adopt_pretrained(source: str, revision: str | None, folder: Path, owner: str) -> TokenizerInfo:
    """Write the tokenizer of the model `source` (folder or hub name) to `folder`.

    A run's saved model so gives what the model that it was made of gave. See `adopt_tokenizer`.
    """
    # Without the model's config, by which transformers may choose another class.
    with tempfile.TemporaryDirectory(prefix="kdscale-tokenizer-") as saved:
        load_tokenizer(source, revision).save_pretrained(saved)
        return adopt_tokenizer(saved, folder, owner=owner)


def _set_template(tokenizer: Any, chat: ChatConfig, own: Any) -> ChatTemplate:
    """Give a transformers tokenizer the config's template, or its `own`.

    A training template is used beside it, where one fits, and not given to the tokenizer. The
    config's own marks have precedence over it, those of published templates have not: SmolLM3's
    stand around what asks for an answer, too. Raises KdscaleError where there is no template, or
    where answers cannot be found in it.
    """
    given = read_template(chat)
    text = given or (own.get("default") if isinstance(own, dict) else own)
    if not text:
        raise KdscaleError(
            "The teacher's tokenizer has no chat template.",
            "Give one in data.chat.template, or load a teacher that was tuned for conversations.",
        )
    specials = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    template = make_template(chat, text, tokens, tuple(sorted(specials)))
    if not (given and template.marks_answers) and text != CHATML:
        template = with_training(template)
    check_template(template)
    tokenizer.chat_template = text
    return template


def encode(tokenizer_json: str, info: TokenizerInfo, texts: list[str]) -> Iterator[list[Encoded]]:
    """Yield the tokens of each text, start and end included: once, or of a chat several times.

    A text that spells a special token is encoded as plain characters: it cannot forge the end of a
    document. For conversations (`messages`) see `_encode_conversations`.
    """
    if info.chat is not None:
        yield from _encode_conversations(tokenizer_json, info.chat, texts)
        return
    encodings = _load(tokenizer_json).encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        tokens = np.array([info.start_id, *encoding.ids, info.end_id], np.int32)
        yield [Encoded(tokens, len(text.encode("utf-8")))]


def _encode_conversations(
    tokenizer_json: str, template: ChatTemplate, texts: list[str]
) -> Iterator[list[Encoded]]:
    """Yield each conversation's tokens as its template writes them.

    The answers are the targets, each in one of the encodings. A conversation has no tokens where
    the template refuses it, or where a message spells a special token, which would be taken for the
    end of its turn.
    """
    tokenizer = _load(tokenizer_json, knows_specials=True)
    for text in texts:
        talk = load(text)
        renderings = _renderings(template, talk)
        yield [_encoded(tokenizer, talk, each) for each in renderings]


def _encoded(tokenizer: Any, talk: Conversation, rendering: Rendering) -> Encoded:
    encoding = tokenizer.encode(rendering.text, add_special_tokens=False)
    offsets = np.array(encoding.offsets).reshape(-1, 2)
    targets = answer_tokens(rendering.text, offsets, rendering.spans)
    learned = [each for at in rendering.answers for each in talk.messages[at].strings]
    byte_count = sum(len(each.encode("utf-8")) for each in learned)
    return Encoded(np.array(encoding.ids, np.int32), byte_count, targets)


def _renderings(template: ChatTemplate, talk: Conversation) -> list[Rendering]:
    """Return the texts of a conversation; an empty one where it cannot be rendered."""
    if not contains_special_token(template, talk):
        try:
            return render_answers(template, talk)
        except CannotRenderError:
            pass
    return [Rendering("", [], [])]


@lru_cache(maxsize=2)
def _load(tokenizer_json: str, *, knows_specials: bool = False) -> Any:
    """Return the tokenizer, cached a process: parsing a large vocabulary takes a second."""
    # Each Ray task has one CPU; threads of several would fight for it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    # Some published files carry the settings of the run that saved them.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not knows_specials
    return tokenizer


def _first(*ids: int | None) -> int | None:
    """Return the first id that is not None."""
    return next((number for number in ids if number is not None), None)


def _info(folder: Path, vocab_size: int, start_id: int, end_id: int, pad_id: int) -> TokenizerInfo:
    digest = hashlib.sha256((folder / TOKENIZER_FILE).read_bytes()).hexdigest()
    return TokenizerInfo(vocab_size, digest, start_id, end_id, pad_id)
