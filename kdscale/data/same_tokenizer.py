"""Comparison of a loaded student's tokenizer with the run's, by the ids that both give.

Not by name or file: the same tokenizer is saved in other words by every version of transformers,
and a file that differs in one merge has the same name. Compared are the ids of texts in several
scripts, of code, digits and blanks, and of the texts of ids from all over the vocabulary; then the
ids of the special tokens that the run uses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.data.pretrained_tokenizer import load_tokenizer, vocabulary_size
from kdscale.errors import KdscaleError

TEXTS = (
    "The quick brown fox jumps over the lazy dog; it wasn't 1st, though.",
    "HELLO World, iPhone e-mail: https://example.org/a_b?c=%20#d <me@x.io>",
    "def f(x: int) -> str:\n    return f'{x!r}'  # done\n\n\n\tif (a && b) { ++i; }\r\n",
    "0 1 12 123 1234 12345 1,234.56 1e-10 0xFF 2026-11-30 3.14159 007 ½ ² Ⅷ",
    " leading,  two,   three    blanks\n\n\n\t\ttabs\u00a0no-break\u2003em\u3000wide trailing   ",
    "Ça coûte déjà 5 €, naïve Zoë; Straße, Ærø, Łódź, İstanbul, ﬁ",
    "e\u0301 n\u0303 A\u030a \u00e9 \u00f1 \u00c5 \u2126 \u03a9 \u1e9b\u0323",
    "Ελληνικά: η γλώσσα. Русский: Съешь ещё этих мягких булок. Українська: їжак.",
    "العربية: السَّلَامُ عَلَيْكُمْ، ١٢٣. עברית: שָׁלוֹם. فارسی: می‌خواهم.",
    "हिन्दी: नमस्ते दुनिया। বাংলা: আমি। தமிழ்: வணக்கம். ไทย: สวัสดีครับ ភាសាខ្មែរ",
    "中文：今天天气很好。日本語：カタカナとひらがな、漢字。한국어: 안녕하세요 세계.",
    "😀 👩‍👩‍👧 🇩🇪 👍🏽 ∑ ∫ ≠ → ∀x∈ℝ “quotes” ‘single’ … — – \u200b\ufeff",
    "\x00\x01\x1b[0m \ufffd \U0001f9ff\U000e0041 ꙮ 𐍈 𝒜",
    "<s> </s> <unk> [CLS] [SEP] [MASK] <|endoftext|> <|im_start|> ▁ Ġ ## @@",
)
_SAMPLE = 2048  # ids of the vocabulary whose texts are compared too
_SHOWN = 8
_ROLES = ("bos", "eos", "pad", "cls", "sep", "mask")


@dataclass(frozen=True)
class _Tokenizer:
    """A tokenizer of transformers, and the library's own under it."""

    whole: Any
    core: Any

    @classmethod
    def of(cls, whole: Any) -> "_Tokenizer":
        core = whole.backend_tokenizer
        core.no_truncation()
        core.no_padding()
        # As in data/tokenizer.py: what spells a special token is plain text.
        core.encode_special_tokens = True
        return cls(whole, core)

    def ids(self, texts: list[str]) -> list[list[int]]:
        found = self.core.encode_batch_fast(texts, add_special_tokens=False)
        return [each.ids for each in found]

    def roles(self) -> dict[str, int]:
        """Return the ids of its special tokens by their role."""
        found = {role: getattr(self.whole, f"{role}_token_id", None) for role in _ROLES}
        return {role: number for role, number in found.items() if number is not None}


def check_same_tokenizer(
    source: str,
    revision: str | None,
    run_folder: Path,
    *,
    is_chat: bool,
    note: Callable[[str], None],
    fix: str,
) -> None:
    """Refuse a model at `source` whose tokenizer gives other ids than that in `run_folder`.

    `source` is a folder or a hub name. Sequences of chats (`is_chat`) hold the special tokens of
    the run's template. `note` takes what differs without harm. Raises KdscaleError with `fix`,
    naming the first text or special token that differs.
    """
    theirs = _beside(source, revision)
    if theirs is None:
        note(
            f"There is no tokenizer beside the weights of the student {source!r} that could be "
            "compared: its ids have to be those of the run's."
        )
        return
    ours = _Tokenizer.of(load_tokenizer(str(run_folder)))
    _check_texts(ours, theirs, source, fix)
    _check_special(_used(ours, is_chat), theirs, source, note, fix)
    _note_roles(ours, theirs, source, note)


def _beside(source: str, revision: str | None) -> _Tokenizer | None:
    """Return the tokenizer of the model at `source`; None where it has none of this form."""
    try:
        whole = load_tokenizer(source, revision)
    except KdscaleError:
        return None
    return _Tokenizer.of(whole) if getattr(whole, "is_fast", False) else None


def _check_texts(ours: _Tokenizer, theirs: _Tokenizer, source: str, fix: str) -> None:
    texts = [*TEXTS, *_texts_of_ids(ours)]
    pairs = zip(texts, ours.ids(texts), theirs.ids(texts), strict=True)
    differing = [(text, mine, other) for text, mine, other in pairs if mine != other]
    if not differing:
        return
    text, mine, other = differing[0]
    start = next((n for n, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), 0)
    shown = ours.core.decode(mine[: start + _SHOWN], skip_special_tokens=False)[-40:] or text[:40]
    raise KdscaleError(
        f"The student {source!r} has another tokenizer than the run: {len(differing):,} of "
        f"{len(texts):,} texts have other ids. At {shown!r} the run's gives "
        f"{mine[start : start + _SHOWN]}, the student's {other[start : start + _SHOWN]}.",
        fix,
    )


def _texts_of_ids(ours: _Tokenizer) -> list[str]:
    """Return the texts of ids spread evenly over the vocabulary; parts of characters have none."""
    size = vocabulary_size(ours.core.get_vocab(with_added_tokens=True))
    ids = np.unique(np.linspace(0, size - 1, min(size, _SAMPLE)).astype(np.int64))
    texts = ours.core.decode_batch([[int(number)] for number in ids], skip_special_tokens=True)
    return [text for text in texts if text and "\ufffd" not in text]


def _check_special(
    used: dict[int, str],
    theirs: _Tokenizer,
    source: str,
    note: Callable[[str], None],
    fix: str,
) -> None:
    """Refuse an id whose special token, `used` by the run, is another token in the student."""
    known = theirs.core.get_vocab(with_added_tokens=True)
    for number, token in sorted(used.items()):
        other = theirs.core.id_to_token(number)
        if other == token:
            continue
        if other is not None or token in known:
            has = "none" if other is None else repr(other)
            where = f"has the id {known[token]}" if token in known else "is unknown"
            raise KdscaleError(
                f"The student {source!r} has another tokenizer than the run: the run's special "
                f"token {token!r} has the id {number}; in the student that is {has}, and the "
                f"token {where}.",
                fix,
            )
        note(
            f"The student's tokenizer has no {token!r}, which is the run's id {number}: that "
            "embedding has not been trained before."
        )


def _note_roles(
    ours: _Tokenizer, theirs: _Tokenizer, source: str, note: Callable[[str], None]
) -> None:
    """Note special tokens of another role, which does no harm: their ids mean the same."""
    mine, other_roles = ours.roles(), theirs.roles()
    differing = [
        f"{role} {mine[role]} ({ours.core.id_to_token(mine[role])!r}) here and "
        f"{other_roles[role]} ({theirs.core.id_to_token(other_roles[role])!r}) there"
        for role in mine
        if role in other_roles and mine[role] != other_roles[role]
    ]
    if differing:
        note(
            f"The run and the tokenizer of the student {source!r} use other special tokens: "
            f"{'; '.join(differing)}. The student learns the run's."
        )


def _used(ours: _Tokenizer, is_chat: bool) -> dict[int, str]:
    """Return the special tokens that the run's sequences may hold, by their ids."""
    used = {number: ours.core.id_to_token(number) for number in ours.roles().values()}
    if not is_chat:
        return used
    template = ours.whole.chat_template
    text = template if isinstance(template, str) else " ".join((template or {}).values())
    for number, added in ours.whole.added_tokens_decoder.items():
        if added.special and str(added) in text:
            used[number] = str(added)
    return used
