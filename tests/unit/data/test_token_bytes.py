"""Bytes of ids and ids of bytes, for every kind of tokenizer that spells its text exactly."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from kdscale.data.token_bytes import TokenBytes
from kdscale.data.tokenizer import TokenizerInfo
from kdscale.errors import KdscaleError
from tests.small_tokenizers import KINDS, TEXTS, changed, info_of, small_tokenizer, small_tokens


def own_ids(kind: str, text: str) -> list[int]:
    tokenizer = small_tokenizer(kind)
    tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_ids_spell_their_text_and_a_continuation_has_the_tokenizers_ids(kind: str) -> None:
    tokens = small_tokens(kind)
    for text in TEXTS:
        if "\u2581" in text or "<0x" in text or "\u0301" in text:
            continue  # which the tokenizers themselves read as another text
        spelled = text.encode()
        if tokens.prefix != "never":
            spelled = tokens.with_blank(spelled)
        ids = own_ids(kind, text)
        if "</s>" not in text:
            assert tokens.spell(np.array(ids)) == spelled
            assert tokens.encode([spelled])[0].tolist() == ids


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_is_spelled_by_its_ids_and_no_special_token_is_read_out_of_it(kind: str) -> None:
    tokens = small_tokens(kind)
    texts = [text.encode() for text in TEXTS]
    ids, counts = tokens.encode([*texts, b""])
    assert counts[-1] == 0
    assert tokens.spell(ids) == b"".join(texts)
    assert not tokens.is_special[ids].any()
    for part, text in zip(np.split(ids, np.cumsum(counts)[:-1]), texts, strict=False):
        assert tokens.spell(part) == text
        assert len(part) <= len(text)


def test_a_blank_in_front_is_added_and_taken_away() -> None:
    always, unless = small_tokens("llama 2"), small_tokens("metaspace, first")
    for text in (b"", b"x", b"  x", b" ", b"   "):
        assert unless.without_blank(unless.with_blank(text)) == text
    for text in (b"", b"x", b" x", b"  x", b" "):
        assert always.without_blank(always.with_blank(text)) == text
    # It may have been there or not: a text rather begins without.
    assert unless.with_blank(b" x") == unless.with_blank(b"x") == b" x"
    assert unless.without_blank(b" x") == b"x"


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.binary(max_size=20) | st.text(max_size=12).map(str.encode), max_size=6))
def test_any_bytes_are_spelled_by_their_ids(kind: str, texts: list[bytes]) -> None:
    tokens = small_tokens(kind)
    ids, counts = tokens.encode(texts)
    assert counts.sum() == len(ids)
    assert tokens.spell(ids) == b"".join(texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_may_be_cut_anywhere(kind: str) -> None:
    tokens, text = small_tokens(kind), "a 👩\u200d👧 \u2581\u4f60 b".encode()
    for cut in range(len(text) + 1):
        ids, _ = tokens.encode([text[:cut], text[cut:]])
        assert tokens.spell(ids) == text


def test_the_bytes_of_an_id_are_those_that_a_byte_level_decoder_gives() -> None:
    tokenizer, tokens = small_tokenizer("byte-level"), small_tokens("byte-level")
    for number in range(2, tokens.vocab_size):
        assert tokens.of_id(number).decode("utf-8", "replace") == tokenizer.decode([number])


def test_special_tokens_have_no_bytes_and_those_of_a_role_are_special() -> None:
    tokenizer = small_tokenizer("byte-level")
    spec = json.loads(tokenizer.to_str())
    for token in spec["added_tokens"]:
        token["special"] = False
    raw = json.dumps(spec).encode()
    tokens = TokenBytes.of(raw, TokenizerInfo(tokenizer.get_vocab_size(), "", 0, 1, 1))
    assert tokens.is_special.nonzero()[0].tolist() == [0, 1]
    assert tokens.names == {"<s>": 0, "</s>": 1}
    assert tokens.spell(np.array([0, 1])) == b""
    assert not tokens.is_special[tokens.encode([b"<s>x</s>"])[0]].any()


def test_a_number_without_a_token_is_a_boundary() -> None:
    spec = json.loads(small_tokenizer("byte-level").to_str())
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 900, "content": "<far>"})
    tokens = TokenBytes.of(json.dumps(spec).encode(), info_of(small_tokenizer("byte-level")))
    assert tokens.vocab_size == 901
    assert tokens.is_special[700:].all()


def test_threads_get_the_same() -> None:
    tokens = small_tokens("unigram")
    texts = [text.encode() for text in TEXTS] * 20
    alone = [tokens.encode([text])[0].tolist() for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: tokens.encode([text])[0].tolist(), texts))
    assert together == alone


def test_nfc_is_left_out_so_that_bytes_stay() -> None:
    text = "cafe\u0301"
    assert own_ids("byte-level, NFC", text) == own_ids("byte-level", "caf\u00e9")
    tokens = small_tokens("byte-level, NFC")
    assert tokens.spell(tokens.encode([text.encode()])[0]) == text.encode()


def test_a_control_character_that_an_alphabet_lacks_is_read_as_a_blank() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = set(pre_tokenizers.ByteLevel.alphabet()) - {"\u0104"}  # what stands for 0x04
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "</s>"], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    tokens = TokenBytes.of(tokenizer.to_str().encode(), info_of(tokenizer))
    assert tokens.spell(tokens.encode([b"a\x04b"])[0]) == b"a b"


def _trained(**parts: Any) -> bytes:
    return changed(small_tokenizer("byte-level"), **parts)


def _suffixed() -> bytes:
    spec = json.loads(small_tokenizer("byte-level").to_str())
    spec["model"]["end_of_word_suffix"] = "</w>"
    return json.dumps(spec).encode()


def _without_fallback() -> bytes:
    spec = json.loads(small_tokenizer("gemma").to_str())
    spec["model"]["byte_fallback"] = False
    return json.dumps(spec).encode()


def _drops_blanks() -> bytes:
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
    own = json.loads(small_tokenizer("byte-level").to_str())["pre_tokenizer"]
    return _trained(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, own]})


def _adds_inside() -> bytes:
    digits = {"type": "Digits", "individual_digits": True}
    own = json.loads(small_tokenizer("byte-level, blank in front").to_str())["pre_tokenizer"]
    return _trained(pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, own]})


def _word_pieces() -> bytes:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw: str = tokenizer.to_str()
    return raw.encode()


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (_trained(normalizer={"type": "NFKC"}), "normaliser 'NFKC' changes text"),
        (_trained(normalizer={"type": "Lowercase"}), "normaliser 'Lowercase' changes text"),
        (_suffixed(), "end_of_word_suffix '</w>'"),
        (_without_fallback(), "no token for the bytes 0x"),
        (_drops_blanks(), "spell .Thequickbrown"),
        (_adds_inside(), "the ids of .* spell"),
        (_word_pieces(), "normaliser 'BertNormalizer'"),
        (_trained(pre_tokenizer={"type": "Whitespace"}), "neither byte-level nor SentencePiece"),
        (b'{"added_tokens": []}', "no `tokenizer.json`"),
        (b"[]", "no `tokenizer.json`"),
        (b'{"model": {"type": "BPE", "vocab": []}, "pre_tokenizer": 3}', "no `tokenizer.json`"),
    ],
)
def test_a_tokenizer_that_does_something_else_to_text_is_refused(raw: bytes, problem: str) -> None:
    with pytest.raises(KdscaleError, match=problem):
        TokenBytes.of(raw, TokenizerInfo(700, "", 0, 1, 1))
