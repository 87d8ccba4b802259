"""Small tokenizers of every kind that spells its text exactly, trained on the standard library."""

import json
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from kdscale.data.token_bytes import TokenBytes
from kdscale.data.tokenizer import TokenizerInfo

KINDS = (
    "byte-level",
    "byte-level, NFC",
    "byte-level, blank in front",
    "metaspace, first",
    "metaspace, never",
    "llama 2",
    "gemma",
    "unigram",
)

# Scripts, emoji with joiners, digits, code, blanks, U+2581, and names of special tokens and bytes.
TEXTS = (
    "The quick brown fox isn't lazy; it jumps over 13 dogs in 2026.",
    "def f(x: int) -> str:\n    return f'{x:>8}'\n\n\n\tpass  # done\r\n",
    "  two blanks in front,   three within, one behind ",
    "na\u00efve caf\u00e9, cafe\u0301: \u00bd \u2581 x\u2581y",
    "Привет, мир! Γειά σου. שלום עולם. مرحبا بالعالم",
    "你好，世界。こんにちは 안녕하세요 नमस्ते สวัสดี",
    "👩\u200d👩\u200d👧 🇫🇷🏳️\u200d🌈 \u00a0\u2003 \U0001f9ff",
    "a </s> b <s>c <unk> <0x41> d<0xE2>",
    "\n\n\n",
    " ",
    "x",
)

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def library() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))[:12]]


@cache
def small_tokenizer(kind: str, vocab_size: int = 700) -> Tokenizer:
    if kind.startswith("byte-level"):
        return _byte_level(vocab_size, kind.endswith("in front"), kind.endswith("NFC"))
    if kind == "unigram":
        return _unigram(vocab_size)
    return _sentencepiece(kind, vocab_size)


@cache
def small_tokens(kind: str, vocab_size: int = 700) -> TokenBytes:
    tokenizer = small_tokenizer(kind, vocab_size)
    return TokenBytes.of(tokenizer.to_str().encode(), info_of(tokenizer))


def info_of(tokenizer: Tokenizer) -> TokenizerInfo:
    ids = tokenizer.get_vocab()
    return TokenizerInfo(len(ids), "", ids["<s>"], ids["</s>"], ids["</s>"])


def changed(tokenizer: Tokenizer, **parts: Any) -> bytes:
    """Return the `tokenizer.json` with other values of some of its parts."""
    return json.dumps(json.loads(tokenizer.to_str()) | parts).encode()


def _byte_level(vocab_size: int, adds_blank: bool, normalises: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_blank)
    if normalises:
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(library(), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@cache
def _trained_sentencepiece(vocab_size: int) -> str:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>", *_BYTES], show_progress=False
    )
    tokenizer.train_from_iterator(library()[:8], trainer)
    raw: str = tokenizer.to_str()
    return raw


def _sentencepiece(kind: str, vocab_size: int) -> Tokenizer:
    spec = json.loads(_trained_sentencepiece(vocab_size))
    spec["added_tokens"] = spec["added_tokens"][:3]
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    if kind == "llama 2":
        prepend = {"type": "Prepend", "prepend": "\u2581"}
        spec["normalizer"] = {"type": "Sequence", "normalizers": [prepend, blanks]}
        spec["pre_tokenizer"] = None
    elif kind == "gemma":
        spec["normalizer"] = blanks
        spec["pre_tokenizer"] = {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        }
    else:
        spec["pre_tokenizer"] |= {"prepend_scheme": kind.split()[-1], "split": False}
    return Tokenizer.from_str(json.dumps(spec))


def _unigram(vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>", *_BYTES],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(library()[:4], trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    spec["model"] |= {"byte_fallback": True, "unk_id": 0}
    return Tokenizer.from_str(json.dumps(spec))
