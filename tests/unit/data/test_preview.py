"""A preview says of a corpus what the prepare stage would do with it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdscale.cli import app
from kdscale.config.data import DataConfig
from kdscale.config.task import Task
from kdscale.data.preview import Preview, preview
from kdscale.errors import KdscaleError
from tests.chats import CONVERSATIONS, FAMILIES, make_tokenizer
from tests.runs import tiny_config, write_config

TEXT = "the river runs past the old mill and under the bridge to the sea"
RECORDS = [
    {"text": f"<p>{TEXT}</p>", "topic": "rivers"},
    {"text": TEXT + " again", "topic": "Rivers"},
    {"text": "an oak and a maple stand near jane@example.org in the wood", "topic": "trees"},
    {"text": "no", "topic": "trees"},
    {"text": "a birch bends in the wind where the willow does not", "topic": ""},
]
STEPS = [{"kind": "strip_markup"}, {"kind": "length", "min_words": 3}, {"kind": "mask_pii"}]


def look(folder: Path, task: Task = "causal-lm", **fields: Any) -> Preview:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    config = {
        "train": {"kind": "jsonl", "path": str(path)},
        "cleaning": STEPS,
        "seq_len": 64,
        "min_characters": 1,
        "tokenizer": {"vocab_size": 300},
        "pack": False,
        **fields,
    }
    return preview(DataConfig.model_validate(config), task, rows=9)


def test_what_each_step_did_is_said_of_each_document(tmp_path: Path) -> None:
    near = {"kind": "near_duplicates", "similarity": 0.5, "words": 2}
    found = look(tmp_path, cleaning=[*STEPS, near])
    fates = ["kept", "nearly duplicate", "kept", "dropped by length", "kept"]
    assert [seen.outcome for seen in found.documents] == fates
    assert [seen.changed_by for seen in found.documents] == [
        *(("strip_markup",), (), ("mask_pii",), (), ()),
    ]
    assert found.documents[0].text == TEXT
    assert "<EMAIL>" in found.documents[2].text
    assert [seen.label for seen in found.documents] == [None] * 5
    assert found.counts.documents == len(found.rows) == 3


def test_rows_of_an_evaluation_set_have_its_context(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": " ".join(f"word{n}" for n in range(200))}) + "\n")
    source = {"kind": "jsonl", "path": str(path)}
    config = DataConfig.model_validate(
        {
            "train": source,
            "evaluate": {"held": source},
            "tokenizer": {"vocab_size": 300},
            "seq_len": 64,
            "pack": False,
            "evaluation_context": 40,
        }
    )
    for name, hidden in (("train", 0), ("held", 39)):
        second = preview(config, "causal-lm", source=name, rows=2).rows[1]
        assert second.is_target == [False] * hidden + [True] * (63 - hidden) + [False]


def test_rows_show_what_is_to_be_predicted(tmp_path: Path) -> None:
    row = look(tmp_path).rows[0]
    assert "".join(row.tokens[1:-1]) == TEXT
    assert row.is_target == [True] * (len(row.tokens) - 1) + [False]
    assert row.expected[:-1] == row.tokens[1:]
    assert row.padding == 64 - len(row.tokens)


def test_masked_rows_show_what_stood_there(tmp_path: Path) -> None:
    row = look(tmp_path, "masked-lm", masking={"share": 0.4}).rows[0]
    restored = [e or t for t, e in zip(row.tokens, row.expected, strict=True)]
    assert "".join(restored[1:-1]) == TEXT
    assert "<|mask|>" in row.tokens


def test_documents_show_their_class(tmp_path: Path) -> None:
    found = look(tmp_path, "sequence-classification", labels={"field": "topic"})
    # Of two spellings the class has the one that comes first.
    expected = ["Rivers", "Rivers", "trees", "(no label)"]
    assert [row.expected[0] for row in found.rows] == expected
    assert [sum(row.is_target) for row in found.rows] == [1] * 4
    assert found.documents[0].label == "rivers"


def test_conversations_show_what_is_learned(tmp_path: Path) -> None:
    talk = [("user", "Which river?"), ("assistant", "The <p>Rhine</p>."), ("user", "Thanks.")]
    record = {"messages": [{"role": role, "content": content} for role, content in talk]}
    (tmp_path / "talk.jsonl").write_text(json.dumps(record) + "\n")
    train = {"kind": "jsonl", "path": str(tmp_path / "talk.jsonl")}
    found = look(tmp_path, train=train, chat={}, cleaning=[{"kind": "strip_markup"}])
    assert found.documents[0].text == "Which river?\n\nThe\nRhine\n.\n\nThanks."
    [row] = found.rows
    said = [e for e, is_target in zip(row.expected, row.is_target, strict=True) if is_target]
    assert "".join(said) == "The\nRhine\n.<|im_end|>"
    assert "".join(row.tokens).startswith("<|im_start|>user\nWhich river?<|im_end|>\n")


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_texts_of_tokens_are_the_rendered_conversation(tmp_path: Path, kind: str) -> None:
    whole = make_tokenizer(FAMILIES["qwen3"], kind, tmp_path / "teacher")
    (tmp_path / "talk.jsonl").write_text(json.dumps(CONVERSATIONS["thoughts and tools"]) + "\n")
    train = {"kind": "jsonl", "path": str(tmp_path / "talk.jsonl")}
    config = {"train": train, "chat": {}, "seq_len": 1024, "pack": False, "min_characters": 1}
    found = preview(
        DataConfig.model_validate({**config, "tokenizer": {"kind": "teacher"}}),
        "causal-lm",
        rows=9,
        teacher_tokenizer=tmp_path / "teacher",
    )
    assert (found.conversations, len(found.rows), found.counts.documents) == (1, 5, 5)
    assert "training template 'qwen3'" in str(found.chat)
    record = CONVERSATIONS["thoughts and tools"]
    talk = [{**each, "content": each["content"] or ""} for each in record["messages"]]
    rendered = whole.apply_chat_template(talk, tools=record["tools"], tokenize=False)
    assert rendered in ["".join(row.tokens) for row in found.rows]
    for row in found.rows:
        following = [*row.tokens[1:], ""]
        wanted = [text if mask else "" for text, mask in zip(following, row.is_target, strict=True)]
        assert row.expected == wanted


def test_a_mixture_shows_the_first_documents_of_each_source(tmp_path: Path) -> None:
    look(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text(TEXT * 2)
    train = [
        {"kind": "jsonl", "path": str(tmp_path / "a.jsonl"), "weight": 3},
        {"kind": "text", "path": str(tmp_path / "b")},
    ]
    found = look(tmp_path, train=train)
    assert len(found.documents) == 6
    assert [share for _, share in found.mixture] == [
        "75.0% of the mixture's text; 4 of the first 5 documents kept",
        "25.0% of the mixture's text; 1 of the first 1 documents kept",
    ]


def test_nothing_to_show_is_said(tmp_path: Path) -> None:
    with pytest.raises(KdscaleError, match="None of the first 5 documents of 'train' is kept"):
        look(tmp_path, min_characters=10_000)
    with pytest.raises(KdscaleError, match="no source 'other'"):
        preview(DataConfig(), "causal-lm", source="other")


@pytest.mark.parametrize(("environment", "is_marked"), [({}, True), ({"FORCE_COLOR": "1"}, False)])
def test_targets_are_coloured_or_in_brackets(
    tmp_path: Path, environment: dict[str, str], is_marked: bool
) -> None:
    talk = [{"role": "user", "content": "Which river?"}, {"role": "assistant", "content": "Rhine."}]
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": talk}) + "\n")
    fields = {
        "data__train": {"kind": "jsonl", "path": str(path)},
        "data__chat": {},
        "data__evaluate": {},
        "data__min_characters": 1,
    }
    config = write_config(tmp_path / "a.yaml", tiny_config(tmp_path, str(tmp_path), **fields))
    done = CliRunner().invoke(app, ["data", "preview", str(config)], env=environment)
    assert done.exit_code == 0, done.output
    assert ("\u27e6Rhine.<|im_end|>\u27e7\n" in done.output) == is_marked
    assert ("\x1b[32m" in done.output) != is_marked


def test_the_command_prints_documents_and_rows(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "one.txt").write_text(TEXT * 3)
    config = write_config(tmp_path / "a.yaml", tiny_config(tmp_path / "corpus", str(tmp_path)))
    done = CliRunner().invoke(app, ["data", "preview", str(config), "--rows", "1"])
    assert done.exit_code == 0, done.output
    assert "one.txt" in done.output
    assert "1 rows of 1 documents" in done.output
    assert TEXT.split()[1] in done.output
