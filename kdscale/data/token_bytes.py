"""Bytes of a tokenizer's ids, and ids of bytes: the ground on which two tokenizers meet.

Two kinds of tokenizers spell any text exactly. Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) writes
every byte as a character of its own; SentencePiece-like BPE and Unigram (Llama 2, Gemma, Mistral)
write a blank as U+2581, and bytes that no token has as <0xNN>. A tokenizer that does something else
to text is refused: by a normaliser that changes letters, a pre-tokenizer that drops blanks, or an
alphabet that lacks bytes. NFC alone, which changes no character's meaning, is left out instead.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdscale.data.tokenizer import TokenizerInfo
from kdscale.errors import KdscaleError

Prefix = Literal["never", "first", "always"]
"""Where a tokenizer adds a blank: nowhere, before a text, or after every special token as well."""

_BLANK = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What `surrogateescape` makes of bytes that are no UTF-8.
_NO_TEXT = re.compile("([\udc80-\udcff]+)")
_NO_TEXT_OR_BLANK = re.compile(f"([\udc80-\udcff{_BLANK}]+)")
_WORD = re.compile(rb" *[^ ]+| +")
# Control characters, and bytes of planes without characters or of no UTF-8: some published
# alphabets lack a few, which their texts never had.
_RARE = {*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F, 0xC0, 0xC1, *range(0xF1, 0x100)}
_SHOWN = 5

# In NFC. One with blanks at both ends, which some tokenizers drop.
_SAMPLES = (
    "The quick brown fox isn't lazy; it jumps over 13 dogs.",
    "def f(x: int) -> str:\n    return f'{x:>8}'\n\n\tpass  # done\r\n",
    "3.14159 1,000,000 0x7F 2026-11-30",
    "  two blanks in front, three   within, one behind ",
    "naïve café Straße ﬁne x² ½ UPPER MiXeD",
    "Привет, мир! Γειά σου. שלום עולם. مرحبا بالعالم",
    "你好，世界。こんにちは 안녕하세요 नमस्ते สวัสดี",
    "👩\u200d👩\u200d👧 🇫🇷 🏳️\u200d🌈 \u00a0\u2003\u200b",
    "\n\n\n",
)


def _letters() -> list[str]:
    """Return the character that byte-level BPE writes for each byte (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = (chr(0x100 + number) for number in range(256))
    return [chr(byte) if byte in shown else next(hidden) for byte in range(256)]


_LETTERS = _letters()
_BYTES = {letter: byte for byte, letter in enumerate(_LETTERS)}


class TokenBytes:
    """The exact bytes of every id of a tokenizer, and its ids of any bytes."""

    def __init__(self, tokenizer_json: bytes, info: TokenizerInfo) -> None:
        """Read a `tokenizer.json` that `of` has found to be exact."""
        roles = {info.start_id, info.end_id, info.pad_id, info.mask_id}
        self._kind = kind = _Kind(_parse(tokenizer_json, roles), roles)
        self.info = info
        self.json = tokenizer_json
        self.digest = hashlib.sha256(tokenizer_json).hexdigest()
        self.prefix = kind.prefix
        self.always_adds = kind.always_adds
        """The blank is added also to a text that begins with one."""
        self._spelled = spelled = kind.spelled()
        self.is_special = np.array([each is None for each in spelled])  # [V] bool
        """Special tokens, and numbers that no token has: they have no bytes."""
        self.lengths = np.array([len(each or b"") for each in spelled], np.int32)  # [V]
        added = {each["content"]: each["id"] for each in kind.spec["added_tokens"]}
        self.names = {name: number for name, number in added.items() if self.is_special[number]}
        """Special tokens by what they are called."""
        self._starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        self._bytes = np.frombuffer(b"".join(each or b"" for each in spelled), np.uint8)

    @classmethod
    def of(cls, tokenizer_json: bytes | Path, info: TokenizerInfo) -> "TokenBytes":
        """Read a `tokenizer.json`, its content or its path.

        The ids that `info` has as start, end, padding and mask are special, whatever the file says.
        Raises KdscaleError where ids do not spell their text exactly: by what the file says, and by
        texts in several scripts, there and back.
        """
        if isinstance(tokenizer_json, Path):
            tokenizer_json = tokenizer_json.read_bytes()
        try:
            found = cls(tokenizer_json, info)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _no_tokenizer(error) from error
        found.encoder.require_bytes()
        _check_round_trip(found)
        return found

    @cached_property
    def encoder(self) -> "_Encoder":
        """Encoder into ids; a large vocabulary takes seconds to be loaded."""
        return _Encoder(self._kind, self._spelled)

    @property
    def vocab_size(self) -> int:
        """The largest id + 1."""
        return len(self.lengths)

    def spell(self, ids: np.ndarray) -> bytes:
        """Return the bytes of `ids` [n], one after another; special tokens have none."""
        lengths = self.lengths[ids].astype(np.int64)
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        # From a byte's place in the text to its place in the table.
        shift = np.repeat(self._starts[ids] - (ends - lengths), lengths)
        return self._bytes[shift + np.arange(total)].tobytes()

    def of_id(self, number: int) -> bytes:
        """Return the bytes of one id; a special token has none."""
        return self._spelled[number] or b""

    def with_blank(self, text: bytes) -> bytes:
        """Return what the tokenizer reads of a `text`, where it adds a blank in front at all."""
        if not text or (text.startswith(b" ") and not self.always_adds):
            return text
        return b" " + text

    def without_blank(self, text: bytes) -> bytes:
        """Invert `with_blank`. One blank counts as added where the text may have had it itself."""
        is_added = text.startswith(b" ") and (self.always_adds or text[1:2] not in (b"", b" "))
        return text[1:] if is_added else text

    def encode(self, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all `texts`, flat int32, and how many each has, [n] int64.

        As continuations: no blank is added in front, and no special token is read out of a text.
        Bytes that are no UTF-8, as at the edges of a window, become tokens of these bytes alone.
        A byte that no token has, as some alphabets lack a control character, is read as a blank.
        Safe to use from threads.
        """
        texts = [text.translate(self.encoder.readable) for text in texts]
        found = self.encoder(texts)
        if self.spell(_flat(found)) != b"".join(texts):
            found = [
                ids if self._spells(ids, text) else self._word_by_word(text)
                for ids, text in zip(found, texts, strict=True)
            ]
        return _flat(found), np.array([len(each) for each in found], np.int64)

    def _spells(self, ids: list[int], text: bytes) -> bool:
        return self.spell(np.array(ids, np.int64)) == text

    def _word_by_word(self, text: bytes) -> list[int]:
        """Return the ids of a text with a word that means something else to the tokenizer.

        Unigram takes "</s>" or "<0x41>" for the piece of that name. Its word is spelled by bytes.
        """
        words = _WORD.findall(text)
        return [
            number
            for ids, word in zip(self.encoder(words), words, strict=True)
            for number in (ids if self._spells(ids, word) else self.encoder.byte_by_byte(word))
        ]


def _flat(found: list[list[int]]) -> np.ndarray:
    total = sum(map(len, found))
    return np.fromiter((number for each in found for number in each), np.int32, total)


class _Kind:
    """Reading of a `tokenizer.json`: the bytes that its tokens stand for, and its added blanks."""

    def __init__(self, spec: dict[str, Any], roles: Collection[int | None]) -> None:
        """Take a parsed `tokenizer.json`. KdscaleError for one that changes text."""
        self.spec = spec
        self._roles = roles
        self.prefix: Prefix = "never"
        self.always_adds = False
        model = spec["model"]
        steps = list(_steps(spec["pre_tokenizer"], "pretokenizers"))
        self.is_byte_level = any(step["type"] == "ByteLevel" for step in steps)
        self.has_fallback = bool(model.get("byte_fallback"))
        self._normalizers = self._kept(list(_steps(spec["normalizer"], "normalizers")))
        metaspaces = [step for step in steps if step["type"] == "Metaspace"]
        writes_blanks = bool(metaspaces or self._normalizers)
        if model.get("type", "BPE") not in ("BPE", "Unigram") or not (
            self.is_byte_level or writes_blanks
        ):
            raise _inexact(
                f"it is {model.get('type')!r} with the pre-tokenizer "
                f"{[step['type'] for step in steps]}, neither byte-level nor SentencePiece-like"
            )
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(name):
                raise _inexact(f"its model has the {name} {model[name]!r}")
        for step in steps:
            if step["type"] == "ByteLevel" and step["add_prefix_space"]:
                self.prefix = "always"
            if step["type"] == "Metaspace":
                if step["replacement"] != _BLANK:
                    raise _inexact(f"it writes a blank as {step['replacement']!r}")
                old = "always" if step.get("add_prefix_space", True) else "never"
                self.prefix = step.get("prepend_scheme", old)

    def _kept(self, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the normalisers that only write blanks; the others add one, or are NFC."""
        kept = []
        for step in steps:
            if step["type"] == "Prepend" and step["prepend"] == _BLANK:
                self.prefix, self.always_adds = "always", True
            elif step["type"] == "Replace" and (step["pattern"], step["content"]) == (
                {"String": " "},
                _BLANK,
            ):
                kept.append(step)
            elif step["type"] != "NFC":
                raise _inexact(f"its normaliser {step['type']!r} changes text")
        return kept

    def continuation(self) -> str:
        """Return the `tokenizer.json` of a tokenizer that adds and changes nothing."""
        kept = self._normalizers
        changed: dict[str, Any] = {
            "truncation": None,
            "padding": None,
            "post_processor": None,
            "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None,
            "pre_tokenizer": copy.deepcopy(self.spec["pre_tokenizer"]),
            "added_tokens": [
                token | {"lstrip": False, "rstrip": False} for token in self.spec["added_tokens"]
            ],
        }
        if self.spec["model"].get("dropout"):
            changed["model"] = self.spec["model"] | {"dropout": None}
        for step in _steps(changed["pre_tokenizer"], "pretokenizers"):
            if step["type"] == "ByteLevel":
                step["add_prefix_space"] = False
            if step["type"] == "Metaspace":
                step.pop("add_prefix_space", None)
                step["prepend_scheme"] = "never"
        return json.dumps(self.spec | changed)

    def spelled(self) -> list[bytes | None]:
        """Return the bytes of every id; None for special tokens and numbers without a token."""
        model, added = self.spec["model"], self.spec["added_tokens"]
        numbers = [*self.vocabulary.values(), *(token["id"] for token in added)]
        found: list[bytes | None] = [None] * (max(numbers, default=-1) + 1)
        for token, number in self.vocabulary.items():
            found[number] = self._bytes_of(token)
        for token in added:
            text = token["content"]
            plain = text if self.is_byte_level else text.replace(_BLANK, " ")
            found[token["id"]] = None if token["special"] else plain.encode()
        name, unknown = model.get("unk_token"), model.get("unk_id")
        if unknown is None:
            unknown = self.vocabulary.get(name or "")
        if unknown is not None and unknown not in self._roles:
            # With a token for every byte, nothing is unknown: it comes of its name alone.
            names = {number: token for token, number in self.vocabulary.items()}
            found[unknown] = names[unknown].encode()
        return found

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Numbers of the model's tokens."""
        vocabulary = self.spec["model"]["vocab"]
        if isinstance(vocabulary, dict):
            return vocabulary
        return {token: number for number, (token, _) in enumerate(vocabulary)}

    def _bytes_of(self, token: str) -> bytes | None:
        if self.is_byte_level:
            try:
                return bytes(_BYTES[letter] for letter in token)
            except KeyError:
                return None  # no text yields it
        single = _BYTE_TOKEN.fullmatch(token) if self.has_fallback else None
        if single:
            return bytes([int(single[1], 16)])
        return token.replace(_BLANK, " ").encode()


class _Encoder:
    """Encoder of bytes into ids, as continuations of a text."""

    def __init__(self, kind: _Kind, spelled: list[bytes | None]) -> None:
        self._tokenizer = _load(kind.continuation())
        self._is_byte_level = kind.is_byte_level
        self._pattern = _NO_TEXT if kind.is_byte_level else _NO_TEXT_OR_BLANK
        single = {text[0]: i for i, text in enumerate(spelled) if text and len(text) == 1}
        for byte in range(0x80) if kind.has_fallback else ():
            # Where a character has a token of its own, as "a" has beside <0x61>.
            number = kind.vocabulary.get(_BLANK if byte == 0x20 else chr(byte))
            if number is not None and spelled[number] == bytes([byte]):
                single[byte] = number
        self._lacking = set(range(256)) - single.keys()
        self._single = {byte: single.get(byte, single.get(0x20, 0)) for byte in range(256)}
        self.readable = bytes(0x20 if byte in self._lacking else byte for byte in range(256))
        """For bytes.translate: a blank for each byte without a token."""

    def require_bytes(self) -> None:
        """Raise KdscaleError where a byte that texts have has no token."""
        missing = sorted(self._lacking - _RARE)
        if missing:
            listed = ", ".join(f"0x{byte:02X}" for byte in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise _inexact(f"it has no token for the bytes {listed}{more}")

    def __call__(self, texts: list[bytes]) -> list[list[int]]:
        """Return the ids of each text."""
        pieces: list[str] = []
        parts: list[list[int | list[int]]] = []  # of a text: numbers of pieces, or ids
        for text in texts:
            part: list[int | list[int]] = []
            for piece, is_text in self._split(text):
                if is_text:
                    part.append(len(pieces))
                    pieces.append(piece)
                else:
                    part.append(self._raw(piece.encode("utf-8", "surrogateescape")))
            parts.append(part)
        encoded = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        ids = [each.ids for each in encoded]
        return [_joined(part, ids) for part in parts]

    def byte_by_byte(self, text: bytes) -> list[int]:
        """Return a token for every byte."""
        return [self._single[byte] for byte in text]

    def _split(self, text: bytes) -> Iterator[tuple[str, bool]]:
        """Yield the parts of a text: (characters, whether the tokenizer reads them as they are)."""
        decoded = text.decode("utf-8", "surrogateescape")
        for number, piece in enumerate(self._pattern.split(decoded)):
            if piece:
                yield piece, number % 2 == 0

    def _raw(self, text: bytes) -> list[int]:
        """Return the ids of bytes that are no text to the tokenizer, or another one."""
        if not self._is_byte_level:
            return self.byte_by_byte(text)
        # Merges know no characters: the beginning of one may be a token.
        letters = "".join(_LETTERS[byte] for byte in text)
        return [token.id for token in self._tokenizer.model.tokenize(letters)]


def _joined(part: list[int | list[int]], ids: list[list[int]]) -> list[int]:
    """Return the ids of a text from its parts: numbers of `ids`, or ids themselves."""
    if len(part) == 1 and isinstance(part[0], int):
        return ids[part[0]]
    return [number for each in part for number in (ids[each] if isinstance(each, int) else each)]


def _steps(step: dict[str, Any] | None, nested: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normaliser or pre-tokenizer, those of sequences one by one."""
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for each in step[nested]:
        yield from _steps(each, nested)


def _parse(raw: bytes, roles: Collection[int | None]) -> dict[str, Any]:
    """Return the parsed file, with the ids of `roles` as special tokens."""
    defaults: dict[str, Any] = {"added_tokens": [], "normalizer": None, "pre_tokenizer": None}
    spec = defaults | json.loads(raw)
    for token in spec["added_tokens"]:
        token["special"] = token["special"] or token["id"] in roles
    return spec


def _load(tokenizer_json: str) -> Any:
    """Return the tokenizer, which reads no special token out of a text."""
    # Loader threads are many already.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises plain ones
        raise _no_tokenizer(error) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _check_round_trip(tokens: TokenBytes) -> None:
    """Refuse a tokenizer whose ids of some samples do not spell them."""
    tokenizer = _load(tokens.json.decode())  # as it is published
    for sample in _SAMPLES:
        text = sample.encode()
        if tokens.prefix != "never":
            text = tokens.with_blank(text)
        ids = tokenizer.encode(sample, add_special_tokens=False).ids
        spelled = tokens.spell(np.array(ids, np.int64))
        if spelled != text:
            shown = spelled.decode("utf-8", "replace")
            raise _inexact(f"the ids of {sample!r} spell {shown!r}")
        own = tokens.encode([text])[0].tolist()
        if own != ids:
            raise _inexact(f"it adds blanks to {sample!r} elsewhere than in front of it")


def _no_tokenizer(error: Exception) -> KdscaleError:
    return KdscaleError(
        f"This is no `tokenizer.json` of the tokenizers library: {error!r}.",
        "Save the tokenizer with transformers' save_pretrained, and give that file.",
    )


def _inexact(why: str) -> KdscaleError:
    return KdscaleError(
        f"The ids of this tokenizer do not spell their text exactly: {why}.",
        "Use a byte-level BPE, or a SentencePiece-like tokenizer with byte fallback and without a "
        "normaliser; or leave distill.tokenizer at `teacher`.",
    )
