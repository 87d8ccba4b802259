"""A teacher's own tokenizer has the ids of its `tokenizer.json`, whatever its class adds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from kdscale.cache.codecs.full import Full
from kdscale.data.pretrained_tokenizer import load_tokenizer, require_embeddings, vocabulary_size
from kdscale.data.tokenizer import adopt_tokenizer, encode, train_tokenizer
from kdscale.errors import KdscaleError

TEXTS = [f"the river number {n} runs past the old mill and under a bridge" for n in range(40)]
TEXT = "The river  runs, 12345 isn't <|endoftext|> here?"


def teacher(folder: Path, model_type: str, tokenizer_class: str | None, **names: Any) -> Path:
    """Write a teacher of 300 embeddings whose tokenizer's only special token is no class's."""
    train_tokenizer(TEXTS, 300, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("<|endoftext|>", "<|over|>"), encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text()) | names
    config["tokenizer_class"] = tokenizer_class
    if tokenizer_class is None:
        del config["tokenizer_class"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    shape = {"model_type": model_type, "vocab_size": 300}
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [
        *(("qwen2", "TokenizersBackend"), ("qwen2", "Qwen2Tokenizer"), ("qwen3_5", None)),
        *(("gpt2", "GPT2Tokenizer"), ("gemma2", "GemmaTokenizer"), ("roberta", None)),
        *(("bert", "BertTokenizer"), ("gpt_neox", "GPTNeoXTokenizer"), ("llama", None)),
        *(("t5", "T5Tokenizer"), ("albert", "AlbertTokenizer"), ("mbart50", "MBart50Tokenizer")),
    ],
)
def test_no_class_adds_ids_of_its_own(
    tmp_path: Path, model_type: str, tokenizer_class: str | None
) -> None:
    source = teacher(tmp_path / "teacher", model_type, tokenizer_class)
    own = Tokenizer.from_file(str(source / "tokenizer.json"))
    info = adopt_tokenizer(source, tmp_path / "copy")
    assert info.vocab_size == 300
    over = own.token_to_id("<|over|>")
    assert (info.start_id, info.end_id, info.pad_id) == (over, over, over)
    copied = (tmp_path / "copy" / "tokenizer.json").read_text(encoding="utf-8")
    [[found]] = encode(copied, info, [TEXT])
    own.encode_special_tokens = True
    assert found.tokens[1:-1].tolist() == own.encode(TEXT, add_special_tokens=False).ids
    require_embeddings(load_tokenizer(str(source)), 300, str(source))


def test_special_tokens_that_only_a_class_names_are_kept(tmp_path: Path) -> None:
    # OLMo's: the end of a text is the class's own, its padding token is not in the file.
    train_tokenizer(TEXTS, 300, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPTNeoXTokenizer"}')
    info = adopt_tokenizer(tmp_path, tmp_path / "copy")
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (info.vocab_size, info.end_id) == (300, own.token_to_id("<|endoftext|>"))


def test_ids_beyond_the_embedding_are_named(tmp_path: Path) -> None:
    source = str(teacher(tmp_path, "llama", None, pad_token="<pad>"))
    tokenizer = load_tokenizer(source)
    with pytest.raises(
        KdscaleError, match=r"300 embeddings, .* beyond them: 300 '<pad>'"
    ) as caught:
        require_embeddings(tokenizer, 300, source)
    assert "tokenizer.json has none of these" in caught.value.fix
    with pytest.raises(KdscaleError, match=r"beyond them: 294 '.*', 295 .* and 2 more") as caught:
        require_embeddings(tokenizer, 294, source)
    assert "the model was trained with" in caught.value.fix
    require_embeddings(tokenizer, 301, source)


def with_holes(folder: Path) -> Path:
    """Return a tokenizer of 300 ids from 0 to 339: those above 280 are moved up by 40."""
    train_tokenizer(TEXTS, 300, folder)
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = found["model"]["vocab"]
    found["model"]["vocab"] = {t: n if n <= 280 else n + 40 for t, n in vocabulary.items()}
    path.write_text(json.dumps(found), encoding="utf-8")
    return folder


def test_a_vocabulary_with_holes_is_as_large_as_its_largest_id(tmp_path: Path) -> None:
    info = adopt_tokenizer(with_holes(tmp_path / "teacher"), tmp_path / "copy")
    assert info.vocab_size == 340
    copied = (tmp_path / "copy" / "tokenizer.json").read_text(encoding="utf-8")
    [[found]] = encode(copied, info, [TEXTS[0]])
    assert 320 < found.tokens.max() < 340
    # What is captured at these positions is over all ids.
    codec = Full(info.vocab_size)
    logits = torch.randn(len(found.tokens), info.vocab_size)
    payload = codec.encode(logits, torch.zeros(len(logits), 0, dtype=torch.float64)).payload
    assert codec.decode(payload).log_probs.shape == (len(found.tokens), 340)
    assert vocabulary_size({}) == 0
