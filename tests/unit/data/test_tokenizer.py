"""The tokenizer: trained, adopted, and used."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdscale.data.tokenizer import (
    END_OF_TEXT,
    TokenizerInfo,
    adopt_tokenizer,
    encode,
    train_tokenizer,
)
from kdscale.errors import KdscaleError

TEXTS = [f"def function_{n}(value):\n    return value * {n}\n" for n in range(200)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenizerInfo]:
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, train_tokenizer(TEXTS, 300, folder)


def read(folder: Path) -> str:
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


def test_auto_tokenizer_loads_what_was_trained(trained: tuple[Path, TokenizerInfo]) -> None:
    folder, info = trained
    loaded = AutoTokenizer.from_pretrained(folder)
    assert len(loaded) == info.vocab_size == 300
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (END_OF_TEXT,) * 3
    assert (info.start_id, info.end_id, info.pad_id) == (loaded.eos_token_id,) * 3
    assert info.sha256 == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    text = " leading, é, \t日本 and\n\nlines"
    assert loaded.decode(loaded.encode(text, add_special_tokens=False)) == text
    [[ours]] = encode(read(folder), info, [text])
    assert ours.tokens[1:-1].tolist() == loaded.encode(text, add_special_tokens=False)


def test_training_does_not_depend_on_the_order_of_texts(
    trained: tuple[Path, TokenizerInfo], tmp_path: Path
) -> None:
    assert train_tokenizer(reversed(TEXTS), 300, tmp_path).sha256 == trained[1].sha256


def test_a_small_corpus_gives_a_smaller_vocabulary(tmp_path: Path) -> None:
    # 256 bytes, the special token, and the merges ab, abab.
    assert train_tokenizer(["abab abab"] * 3, 5000, tmp_path).vocab_size < 270


@settings(deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=4))
def test_encoding_loses_nothing(trained: tuple[Path, TokenizerInfo], texts: list[str]) -> None:
    folder, info = trained
    backend = Tokenizer.from_str(read(folder))
    documents = [each for [each] in encode(read(folder), info, texts)]
    assert len(documents) == len(texts)
    for text, (tokens, byte_count, targets) in zip(texts, documents, strict=True):
        assert tokens.dtype == np.int32
        assert (tokens[0], tokens[-1]) == (info.start_id, info.end_id)
        assert backend.decode(tokens[1:-1].tolist(), skip_special_tokens=False) == text
        assert byte_count == len(text.encode())
        assert targets is None


def test_text_cannot_forge_the_end_of_a_document(trained: tuple[Path, TokenizerInfo]) -> None:
    folder, info = trained
    [[found]] = encode(read(folder), info, [f"a{END_OF_TEXT}b"])
    tokens = found.tokens
    assert (tokens == info.end_id).sum() == 2
    assert tokens[0] == tokens[-1] == info.end_id


def teacher_folder(folder: Path, **special: str) -> Path:
    """Write a lower-casing tokenizer of words with a template and a saved truncation."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["[UNK]", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        ["one two three four"], trainers.WordLevelTrainer(special_tokens=names, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.enable_truncation(3)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)
    wrapped.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_the_teachers_tokenizer_is_adopted(tmp_path: Path) -> None:
    source = teacher_folder(tmp_path / "teacher", bos_token="<s>", eos_token="</s>")
    info = adopt_tokenizer(source, tmp_path / "copy")
    theirs = AutoTokenizer.from_pretrained(source)
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").get_vocab() == theirs.get_vocab()
    assert (info.start_id, info.end_id) == (theirs.bos_token_id, theirs.eos_token_id)
    # No padding token of its own: the end token fills.
    assert info.pad_id == theirs.eos_token_id
    assert not (tmp_path / "copy" / "model.safetensors").exists()
    [[found]] = encode(read(tmp_path / "copy"), info, ["One two THREE four two"])
    words = [theirs.get_vocab()[word] for word in ("one", "two", "three", "four", "two")]
    assert found.tokens.tolist() == [info.start_id, *words, info.end_id], "not cut, no template"
    assert found.byte_count == 22


def test_a_teacher_without_a_usable_tokenizer_is_refused(tmp_path: Path) -> None:
    source = teacher_folder(tmp_path / "teacher", bos_token="<s>")
    with pytest.raises(KdscaleError, match="names no end-of-text token"):
        adopt_tokenizer(source, tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(KdscaleError, match="can load no tokenizer"):
        adopt_tokenizer(tmp_path / "empty", tmp_path / "copy")
