"""Families of chat templates: what is learned is what transformers' rendered prefixes say."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from kdscale.config.chat import ChatConfig
from kdscale.config.data import DataConfig
from kdscale.data.cleaning.cleaner import Cleaner
from kdscale.data.sources.fields import Fields
from kdscale.data.tokenizer import Encoded, TokenizerInfo, adopt_tokenizer, encode
from kdscale.errors import KdscaleError
from tests.chats import (
    CONVERSATIONS,
    DATA,
    FAMILIES,
    Family,
    Record,
    learned_turns,
    make_tokenizer,
    text_of,
)

Adopted = tuple[Any, Path, TokenizerInfo]
_CLEAN = Cleaner(
    DataConfig.model_validate(
        {"train": {"kind": "jsonl", "path": "a"}, "chat": {}, "min_characters": 1}
    )
)
# The template raises an error: there are no system messages, no tools, or no two calls a turn.
_NO_TOOLS = ["tools", "text and calls", "thoughts and tools"]
LEFT_OUT = {
    "gemma2": ["system", "empty", "thoughts", *_NO_TOOLS],
    "gemma3": _NO_TOOLS,
    "mistral_small_3": _NO_TOOLS,
    "llama3_1": ["text and calls"],
}
_ADOPTED: dict[str, Adopted] = {}


def adopt(name: str, kind: str, tmp: pytest.TempPathFactory, **chat: Any) -> Adopted:
    """Return a family's tokenizer by transformers, and what the prepare stage makes of it."""
    key = f"{name} {kind} {chat}"
    if key not in _ADOPTED:
        folder = tmp.mktemp("family")
        tokenizer = make_tokenizer(FAMILIES[name], kind, folder / "own")
        info = adopt_tokenizer(folder / "own", folder / "copy", chat=ChatConfig(**chat))
        _ADOPTED[key] = (tokenizer, folder / "copy", info)
    return _ADOPTED[key]


def encoded(adopted: Adopted, record: Record) -> list[Encoded]:
    """Return a record's texts as the prepare stage reads, cleans and encodes them."""
    _, folder, info = adopted
    document = Fields("text", None, ChatConfig(), info.chat).document(record, "a.jsonl#7")
    text = _CLEAN(document.content).text
    [found] = encode((folder / "tokenizer.json").read_text(), info, [text])
    return found


def turns(found: list[Encoded]) -> list[tuple[list[int], list[int]]]:
    """Return the ids before each run of targets, and the run's own."""
    pairs = []
    for each in found:
        assert each.targets is not None
        edges = np.flatnonzero(np.diff(np.concatenate([[0], each.targets.astype(int), [0]])))
        for start, end in edges.reshape(-1, 2):
            pairs.append((each.tokens[:start].tolist(), each.tokens[start:end].tolist()))
    return sorted(pairs)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learned_is_what_is_generated_behind_each_rendered_prefix(
    name: str, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    family, adopted = FAMILIES[name], adopt(name, kind, tmp_path_factory)
    assert adopted[2].chat is not None
    assert adopted[2].chat.training == family.training
    for conversation in family.supports:
        record = CONVERSATIONS[conversation]
        expected = learned_turns(adopted[0], family, record, {})
        assert expected, conversation
        assert turns(encoded(adopted, record)) == sorted(expected), conversation


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_cannot_write_is_refused_or_left_out(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    adopted = adopt(name, "bytes", tmp_path_factory)
    for conversation in sorted(CONVERSATIONS.keys() - set(FAMILIES[name].supports)):
        if conversation in LEFT_OUT.get(name, ()):
            found = encoded(adopted, CONVERSATIONS[conversation])
            assert [len(each.tokens) for each in found] == [0], conversation
            continue
        with pytest.raises(KdscaleError, match="be lost"):
            encoded(adopted, CONVERSATIONS[conversation])


def published_text(family: Family, template: str) -> dict[str, str]:
    """Return a digest of what transformers renders of each conversation, prompt by prompt."""
    whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), **family.tokens)
    found = {}
    for name in family.supports:
        record = CONVERSATIONS[name]
        talk = [{**each, "content": text_of(each)} for each in record["messages"]]
        texts = [
            whole.apply_chat_template(
                talk[:at],
                chat_template=template,
                tools=record.get("tools"),
                add_generation_prompt=asks,
                date_string="26 Jul 2024",
                tokenize=False,
            )
            for at in range(1, len(talk) + 1)
            for asks in (False, True)
            if not (at == 1 and talk[0]["role"] == "system")
        ]
        found[name] = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return found


@pytest.mark.parametrize("name", ["llama3", "llama3_1", "llama3_2", "gemma2", "gemma3"])
def test_templates_that_are_not_kept_here_render_what_the_published_ones_do(name: str) -> None:
    # Digests of what the published templates give: their licences keep the texts elsewhere.
    expected = json.loads((DATA / "renderings.json").read_text())[name]
    family = FAMILIES["llama3_1" if name == "llama3_2" else name]
    assert published_text(family, family.template) == expected


@pytest.mark.parametrize(
    ("name", "chat"),
    [
        ("qwen3", {"variables": {"enable_thinking": False}}),
        ("smollm3", {"variables": {"enable_thinking": False}}),
        ("llama3_1", {"variables": {"tools_in_user_message": False}}),
        ("llama3_1", {"date": "2025-02-03"}),
        ("smollm3", {"date": "2025-02-03"}),
    ],
)
def test_dates_and_variables_are_those_of_the_config(
    name: str, chat: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    adopted = adopt(name, "bytes", tmp_path_factory, **chat)
    family = FAMILIES[name]
    assert adopted[2].chat is not None
    assert adopted[2].chat.training == family.training
    variables = dict(chat.get("variables", {}))
    if "date" in chat:
        variables["date_string"] = "03 Feb 2025"
        family = replace(family, dates=dict.fromkeys(family.dates, '"03 February 2025"'))
    for conversation in set(family.supports) - {"thoughts", "thoughts and tools"}:
        record = CONVERSATIONS[conversation]
        if name == "qwen3" and conversation == "thoughts in the text":
            continue
        expected = learned_turns(adopted[0], family, record, variables)
        assert turns(encoded(adopted, record)) == sorted(expected), conversation


def test_what_a_training_template_renders_otherwise_is_left_to_the_published_one(
    tmp_path: Path,
) -> None:
    # An edition of Qwen 3's that tells of tools in other words.
    family = FAMILIES["qwen3"]
    whole = make_tokenizer(family, "bytes", tmp_path / "own")
    edition = family.template.replace("# Tools", "# Instruments")
    whole.chat_template = edition
    whole.save_pretrained(tmp_path / "own")
    info = adopt_tokenizer(tmp_path / "own", tmp_path / "copy", chat=ChatConfig())
    assert info.chat is not None
    assert info.chat.training == "qwen3"
    for conversation in ("thoughts", "tools", "thoughts and tools"):
        record = CONVERSATIONS[conversation]
        expected = learned_turns(whole, family, record, {"chat_template": edition})
        found = turns(encoded((whole, tmp_path / "copy", info), record))
        assert found == sorted(expected), conversation


def test_thoughts_are_refused_where_the_prompt_ends_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    adopted = adopt("qwen3", "bytes", tmp_path_factory, variables={"enable_thinking": False})
    with pytest.raises(KdscaleError, match="changes earlier turns") as caught:
        encoded(adopted, CONVERSATIONS["thoughts"])
    assert r"assistant\n<think>\n\n</think>" in caught.value.problem
    assert r"assistant\n<think>\nTwo and two." in caught.value.problem
    assert "enable_thinking" in caught.value.fix
