"""A student's tokenizer is compared with the run's by the ids that both give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdscale.config.chat import ChatConfig
from kdscale.data.same_tokenizer import check_same_tokenizer
from kdscale.data.tokenizer import adopt_tokenizer, train_tokenizer
from kdscale.errors import KdscaleError

TEXT = "the river runs past the old mill and under a bridge 12 345 Straße où 東京 "
TEXTS = [TEXT[n % 7 :] for n in range(40)]


def check(run: Path, student: Path, *, is_chat: bool = False) -> list[str]:
    """Compare; return the notes."""
    notes: list[str] = []
    check_same_tokenizer(
        str(student), None, run, is_chat=is_chat, note=notes.append, fix="Take another."
    )
    return notes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    train_tokenizer(TEXTS, 340, tmp_path / "trained")
    adopt_tokenizer(tmp_path / "trained", tmp_path / "run")
    return tmp_path / "run"


def edited(run: Path, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Write a copy of the run's tokenizer whose tokenizer.json was edited."""
    tokenizer = AutoTokenizer.from_pretrained(run)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    edit(tree)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return folder


def test_the_same_tokenizer_in_other_files_is_the_same(run: Path, tmp_path: Path) -> None:
    def other_words(tree: dict[str, Any]) -> None:
        tree["truncation"] = {
            "direction": "Right",
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        tree["post_processor"] = None
        tree["decoder"] = {"type": "ByteFallback"}

    assert check(run, run) == []
    student = edited(run, tmp_path / "student", other_words)
    assert (student / "tokenizer.json").read_bytes() != (run / "tokenizer.json").read_bytes()
    assert check(run, student) == []


def drop_last_merge(tree: dict[str, Any]) -> None:
    tree["model"]["merges"] = tree["model"]["merges"][:-1]


def split_digits(tree: dict[str, Any]) -> None:
    digits = {"type": "Digits", "individual_digits": True}
    both = [digits, tree["pre_tokenizer"]]
    tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": both}


def lower_case(tree: dict[str, Any]) -> None:
    tree["normalizer"] = {"type": "Lowercase"}


def compose(tree: dict[str, Any]) -> None:
    tree["normalizer"] = {"type": "NFC"}


def prefix_space(tree: dict[str, Any]) -> None:
    tree["pre_tokenizer"]["add_prefix_space"] = True


def swap_ids(tree: dict[str, Any]) -> None:
    vocabulary = tree["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]


@pytest.mark.parametrize(
    "edit", [drop_last_merge, split_digits, lower_case, compose, prefix_space, swap_ids]
)
def test_other_ids_are_refused_with_a_text_that_has_them(
    edit: Callable[[dict[str, Any]], None], run: Path, tmp_path: Path
) -> None:
    student = edited(run, tmp_path / "student", edit)
    with pytest.raises(KdscaleError, match=r"texts have other ids\. At .* the run's gives \["):
        check(run, student)


def test_a_vocabulary_of_other_words_is_refused(run: Path, tmp_path: Path) -> None:
    train_tokenizer([text[::-1] for text in TEXTS], 340, tmp_path / "student")
    with pytest.raises(KdscaleError, match="has another tokenizer than the run"):
        check(run, tmp_path / "student")


def test_another_end_of_text_is_noted_not_refused(run: Path, tmp_path: Path) -> None:
    """As of a base model and the one that was tuned for chats: their ids mean the same."""
    tokenizer = AutoTokenizer.from_pretrained(run)
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save_pretrained(tmp_path / "base")
    tokenizer.eos_token = "<|end|>"
    tokenizer.save_pretrained(tmp_path / "tuned")
    number = tokenizer.convert_tokens_to_ids("<|end|>")
    (note,) = check(tmp_path / "tuned", tmp_path / "base")
    assert f"eos {number} ('<|end|>') here and 0 ('<|endoftext|>') there" in note
    # What the student does not know has an embedding that nobody has trained.
    unknown, roles = check(tmp_path / "tuned", run)
    assert f"has no '<|end|>', which is the run's id {number}" in unknown
    assert "eos" in roles
    assert check(run, tmp_path / "tuned") != []


def test_a_special_token_of_another_id_is_refused(run: Path, tmp_path: Path) -> None:
    one, two = (AutoTokenizer.from_pretrained(run) for _ in range(2))
    one.add_tokens([AddedToken(name, special=True) for name in ("<|a|>", "<|b|>")])
    two.add_tokens([AddedToken(name, special=True) for name in ("<|b|>", "<|a|>")])
    one.eos_token = "<|a|>"
    one.save_pretrained(tmp_path / "one")
    two.save_pretrained(tmp_path / "two")
    with pytest.raises(
        KdscaleError, match=r"'<\|a\|>' has the id \d+; in the student that is '<\|b\|>'"
    ):
        check(tmp_path / "one", tmp_path / "two")


def test_the_tokens_of_a_chats_template_count_where_there_are_chats(
    run: Path, tmp_path: Path
) -> None:
    train_tokenizer(TEXTS, 340, tmp_path / "chat", chat=ChatConfig())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chat")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.save_pretrained(tmp_path / "student")
    path = tmp_path / "student" / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("<|im_start|>", "<|reserved|>"), encoding="utf-8")
    config = tmp_path / "student" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|im_start|>", "<|endoftext|>"))
    with pytest.raises(KdscaleError, match=r"special token '<\|im_start\|>' has the id"):
        check(tmp_path / "chat", tmp_path / "student", is_chat=True)


def test_a_model_without_a_tokenizer_is_noted(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "llama"}')
    (note,) = check(run, tmp_path / "bare")
    assert "no tokenizer beside the weights" in note
