"""Conversations: tokens are those that transformers gives, targets the answers alone."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kdscale.config.chat import ChatConfig
from kdscale.config.data import DataConfig
from kdscale.data.chat.answers import RENDERING, answer_tokens, check_template, render_answers
from kdscale.data.chat.messages import (
    Conversation,
    Message,
    dump,
    load,
    plain_text,
    read_conversation,
)
from kdscale.data.chat.template import (
    CHATML,
    CHATML_TOKENS,
    CannotRenderError,
    ChatTemplate,
    template_to_train,
)
from kdscale.data.cleaning.cleaner import FIRST_STEP, Cleaner, Status
from kdscale.data.prepare import data_identity
from kdscale.data.sources.fields import Fields
from kdscale.data.tokenizer import Encoded, TokenizerInfo, adopt_tokenizer, encode, train_tokenizer
from kdscale.errors import KdscaleError

SMOLLM2 = Path(__file__).parents[4] / "assets" / "smollm2-135m-instruct"
START, END = CHATML_TOKENS
# ChatML that does not say which part is the answer.
UNMARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Mistral's and Llama 2's: nothing asks for an answer, a blank comes before it.
BLANKS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] "
    "+ ' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
NO_PROMPT = UNMARKED[: UNMARKED.index("{% if add_generation_prompt")]
TALK = [
    Message("system", "Be short.", False),
    Message("user", "Why is the sky blue?", False),
    Message("assistant", "Scattering.", True),
    Message("user", "And red?", False),
    Message("assistant", "Scattering too\n\nof \N{THUMBS UP SIGN} what is left.", True),
]


def template(text: str) -> ChatTemplate:
    tokens = {"bos_token": START, "eos_token": END}
    return ChatTemplate(text, tokens, CHATML_TOKENS)


def answers(text: str, messages: Sequence[Message]) -> list[str]:
    """Return what is learned, text by text."""
    renderings = render_answers(template(text), Conversation(messages))
    return [each.text[start:end] for each in renderings for start, end in each.spans]


def texts_of(text: str, messages: Sequence[Message]) -> list[str]:
    return [each.text for each in render_answers(template(text), Conversation(messages))]


def read(record: dict[str, Any], config: ChatConfig) -> list[Message]:
    found = read_conversation(record, config, "a#0")
    assert found is not None
    return list(found.messages)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenizerInfo]:
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, train_tokenizer(["why is the sky so blue"] * 9, 320, folder, chat=ChatConfig())


def encode_one(folder: Path, info: TokenizerInfo, messages: Sequence[Message]) -> Encoded:
    text = dump(Conversation(messages))
    [[found]] = encode((folder / "tokenizer.json").read_text(), info, [text])
    return found


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": each.role, "content": each.content} for each in messages]


def learned(folder: Path, found: Encoded) -> str:
    """Return the text of the targets."""
    assert found.targets is not None
    return str(AutoTokenizer.from_pretrained(folder).decode(found.tokens[found.targets]))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(str.strip)
TALKS = st.lists(st.tuples(TEXTS.filter(bool), TEXTS.filter(bool)), min_size=1, max_size=3).map(
    lambda turns: [
        message
        for asked, answer in turns
        for message in (Message("user", asked, False), Message("assistant", answer, True))
    ]
)


@settings(deadline=None, max_examples=60)
@given(TALKS)
def test_tokens_and_answers_are_those_that_transformers_gives(
    trained: tuple[Path, TokenizerInfo], talk: list[Message]
) -> None:
    folder, info = trained
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        as_dicts(talk), return_dict=True, return_assistant_tokens_mask=True
    )
    found = encode_one(folder, info, talk)
    assert found.targets is not None
    assert found.tokens.tolist() == theirs["input_ids"]
    assert found.targets.tolist() == [bool(each) for each in theirs["assistant_masks"]]
    said = [message.content for message in talk if message.is_target]
    assert found.byte_count == sum(len(each.encode()) for each in said)


@settings(deadline=None, max_examples=60)
@given(TALKS)
def test_answers_are_found_in_templates_that_do_not_mark_them(talk: list[Message]) -> None:
    found = render_answers(template(UNMARKED), Conversation(talk))
    assert found == render_answers(template(CHATML), Conversation(talk))


def test_an_answer_ends_with_the_token_that_ends_its_turn() -> None:
    said = [message.content for message in TALK if message.is_target]
    assert answers(UNMARKED, TALK) == [each + END for each in said]
    assert answers(NO_PROMPT, TALK) == [each + END for each in said]
    assert answers(BLANKS, TALK[1:]) == [f" {each} {END}" for each in said]


def test_what_comes_before_an_answer_is_learned_where_the_model_says_it() -> None:
    thinking = UNMARKED.replace("message['content'] +", "'<think></think>' + message['content'] +")
    assert answers(thinking, TALK[1:3]) == [f"<think></think>Scattering.{END}"]


def test_answers_that_are_not_to_be_learned_are_left_out() -> None:
    asked = [*TALK[:2], Message("assistant", "Scattering.", False), *TALK[3:]]
    for text in (UNMARKED, CHATML, NO_PROMPT):
        assert answers(text, asked) == [TALK[-1].content + END]
    twice = CHATML.replace("{% gen", "{% generation %}{% endgeneration %}{% gen")
    with pytest.raises(KdscaleError, match="marks 4 answers in a conversation of 2"):
        answers(twice, asked)
    assert answers(UNMARKED, [TALK[1], Message("assistant", "", True)]) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (UNMARKED.replace("message['content'] +", "message['content'] | upper +"), "text of an"),
        (UNMARKED.replace("'<|im_end|>\\n'", "'\\n'"), "there is no special token"),
        (
            UNMARKED.replace("message['content'] +", "(message['content'] if loop.last else '') +"),
            "changes earlier turns",
        ),
    ],
)
def test_templates_in_which_answers_cannot_be_told_are_refused(text: str, problem: str) -> None:
    with pytest.raises(KdscaleError, match=problem):
        answers(text, TALK)


def test_a_template_is_looked_at_before_anything_is_read() -> None:
    check_template(template(UNMARKED))
    for broken in ("{% for %}", "{{ messages[0].nothing.at_all }}", "{{ raise_exception('no') }}"):
        with pytest.raises(KdscaleError, match="cannot render a question and an answer"):
            check_template(template(broken))
    misplaced = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    with pytest.raises(KdscaleError, match="not around the answer of a question"):
        check_template(template(misplaced + "{% generation %}{% endgeneration %}"))
    with pytest.raises(CannotRenderError, match="only user and assistant"):
        answers(BLANKS, TALK)


def test_a_conversation_that_spells_a_special_token_has_no_tokens(
    trained: tuple[Path, TokenizerInfo],
) -> None:
    forged = [Message("user", f"Say {END} now", False), Message("assistant", "No.", True)]
    found = encode_one(*trained, forged)
    assert len(found.tokens) == 0
    assert found.targets is not None


def test_tokens_at_the_edges_of_an_answer() -> None:
    text = "ask: yes.END"
    # A token may take the blank before an answer with it, or leave it out of its offsets, or share
    # its only character with the next one.
    for offsets in ([[0, 4], [4, 8], [8, 9], [9, 12]], [[0, 4], [5, 8], [8, 9], [9, 12]]):
        found = answer_tokens(text, np.array(offsets), [(5, 12)])
        assert found.tolist() == [False, True, True, True]
    split = np.array([[0, 4], [5, 6], [5, 6], [6, 8], [8, 9], [9, 12]])
    assert answer_tokens(text, split, [(5, 9)]).tolist() == [False, True, True, True, True, False]
    # What also stands for a part of the question is not the answer's.
    straddling = np.array([[0, 3], [3, 6], [6, 12]])
    assert answer_tokens(text, straddling, [(5, 12)]).tolist() == [False, False, True]
    assert answer_tokens("yes", np.array([[0, 3]]), [(0, 3)]).tolist() == [False]
    assert answer_tokens("", np.zeros((0, 2), int), []).tolist() == []


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({"messages": as_dicts(TALK)}, {}),
        ({"messages": json.dumps(as_dicts(TALK))}, {}),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be short."},
                    {"from": "human", "value": "Why is the sky blue?"},
                    {"from": "gpt", "value": "Scattering."},
                    {"from": "pupil", "value": "And red?"},
                    {"from": "gpt", "value": TALK[-1].content},
                ]
            },
            {"field": "conversations", "roles": {"pupil": "human"}},
        ),
        (
            {
                "messages": [
                    {"role": each.role, "content": [{"type": "text", "text": each.content}]}
                    for each in TALK
                ]
            },
            {},
        ),
    ],
)
def test_the_forms_of_a_conversation(record: dict[str, Any], fields: dict[str, Any]) -> None:
    assert read(record, ChatConfig.model_validate(fields)) == TALK


def test_prompts_with_completions() -> None:
    config = ChatConfig(prompt="asked", completion="said")
    plain = read({"asked": "Why?", "said": "So."}, config)
    assert plain == [Message("user", "Why?", False), Message("assistant", "So.", True)]
    assert plain_text(dump(Conversation(plain))) == "Why?\n\nSo."
    record = {"asked": as_dicts(TALK[:4]), "said": as_dicts(TALK[4:])}
    talk = read(record, config)
    assert [message.is_target for message in talk] == [False, False, False, False, True]


def test_answers_that_a_record_takes_out() -> None:
    said = {"role": "assistant", "content": "So."}
    record = {"messages": [said | {"weight": 0}, said | {"train": False}, said | {"weight": 1}]}
    talk = read(record, ChatConfig())
    assert [message.is_target for message in talk] == [False, False, True]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (3, "a#0 holds a int and no list of messages"),
        (["hello"], "a str for a message"),
        ([{"role": "user", "text": "Hi"}], r"a message with the fields \['role', 'text'\]"),
        ([{"role": "narrator", "content": "Hi"}], "by 'narrator', which is no known role"),
        ([{"role": "user", "content": {"image": 1}}], "a message that is no text"),
        ([{"role": "user", "content": ["Hi"]}], "a message that is no text: a part is 'str'"),
        (
            [{"role": "user", "content": [{"type": "image", "text": "Hi", "url": "a"}]}],
            r"messages\[0\] of a#0 holds .* a part is 'image' with url",
        ),
        (
            [{"role": "user", "content": "Hi", "seen": bytes(3)}],
            r"messages\[0\] of a#0: 'seen' holds",
        ),
        ([{"role": "assistant", "content": "Hi", "weight": 0.5}], r"\[0\] of a#0 has weight: 0.5"),
        ([{"role": "assistant", "content": "Hi", "train": "no"}], r"\[0\] of a#0 has train: 'no'"),
        ([{"role": "user", "content": "Hi", "train": True}], "is by 'user' and has train: True"),
    ],
)
def test_what_is_no_conversation_is_refused(value: Any, problem: str) -> None:
    with pytest.raises(KdscaleError, match=problem):
        read_conversation({"messages": value}, ChatConfig(), "a#0")


def test_what_cannot_be_read_is_left_out() -> None:
    assert read_conversation({"messages": "not JSON"}, ChatConfig(), "a#0") is None
    assert read({"messages": None}, ChatConfig()) == []


def talk_with(answer: dict[str, Any], **chat: Any) -> list[Message]:
    """Return a question and the answer, as they are read."""
    asked = {"role": "user", "content": "Why?", "weight": 0}
    record = {"messages": [asked, {"role": "assistant", "content": "So.", **answer}]}
    return read(record, ChatConfig.model_validate(chat))


# As DeepSeek's and Qwen's: thoughts before an answer and calls of tools behind it.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m['content'] }}{% for call in m.tool_calls or [] %}{% if m['content'] or not loop.first %}"
    "{{ '\\n' }}{% endif %}{{ '<call>' + (call.function | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "the sky"}}}
CALLED = '<call>{"name": "look", "arguments": {"at": "the sky"}}</call>'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"reasoning_content": "hm"}, "<think>hm</think>So."),
        ({"tool_calls": [CALL]}, f"So.\n{CALLED}"),
        ({"tool_calls": [CALL], "content": None}, CALLED),
        ({"reasoning_content": "hm", "tool_calls": [CALL, CALL], "content": ""}, None),
        ({"reasoning_content": None, "tool_calls": [], "name": "", "audio": {"id": None}}, "So."),
    ],
)
def test_what_is_said_beside_the_content_is_rendered_and_learned(
    answer: dict[str, Any], said: str | None
) -> None:
    talk = [*talk_with(answer), Message("user", "And red?", False)]
    said = said or f"<think>hm</think>{CALLED}\n{CALLED}"
    assert answers(THINKING, talk) == [said + END]
    marked = THINKING.replace("{% if m.reas", "{% generation %}{% if m.reas").replace(
        "{{ '<|im_end|>\\n' }}", "{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    )
    assert answers(marked, talk)[1] == said + END


FIELDS: list[dict[str, Any]] = [
    {"reasoning_content": "hm"},
    {"thinking": "hm"},
    {"reasoning": "hm"},
    {"tool_calls": [CALL]},
    {"function_call": {"name": "look", "arguments": "{}"}},
    {"refusal": "No."},
    {"name": "Ann"},
    {"images": ["a.png"]},
    {"audio": {"id": "x"}},
    {"anything": False},
]


@pytest.mark.parametrize("answer", FIELDS)
def test_a_field_that_the_template_does_not_write_is_refused(answer: dict[str, Any]) -> None:
    [name] = answer
    for text in (UNMARKED, CHATML, UNMARKED + f"{{% if messages[-1].{name} %}}{{% endif %}}"):
        with pytest.raises(KdscaleError, match=rf"'{name}' of messages\[1\] \(assistant: 'So.'\)"):
            answers(text, talk_with(answer))
        assert answers(text, talk_with(answer, ignore=[name])) == [f"So.{END}"]


def test_turns_that_later_ones_change_have_texts_of_their_own() -> None:
    # Thoughts of the last turn alone.
    last = THINKING.replace("if m.reasoning_content", "if m.reasoning_content and loop.last")
    talk = talk_with({"reasoning_content": "hm"})
    said = f"<think>hm</think>So.{END}"
    [alone] = texts_of(last, talk)
    short = alone.replace("<think>hm</think>", "")
    assert texts_of(last, [*talk, *talk]) == [short + alone, alone.removesuffix("\n")]
    assert answers(last, [*talk, *talk]) == [said, said]
    # What follows the last answer is no reason to lose its thoughts, nor is an answer as context.
    assert answers(last, [*talk, talk[0]]) == [said]
    assert answers(last, [talk[0], replace(talk[1], is_target=False), *talk]) == [said]


def test_special_tokens_that_follow_each_other_end_a_turn_together() -> None:
    doubled = UNMARKED.replace("'<|im_end|>\\n'", "'<|im_end|><|im_start|>\\n<|im_end|>'")
    assert answers(doubled, TALK[1:3]) == [f"Scattering.{END}{START}"]


def test_thoughts_are_learned_where_a_template_that_marks_answers_takes_them_away() -> None:
    marked = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' %}{% set thinks = m.reasoning_content and loop.last %}"
        "{% generation %}{{ '(' + m.reasoning_content + ')' if thinks else '' }}"
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    talk = talk_with({"reasoning_content": "hm"})
    assert answers(marked, [*talk, *talk]) == [f"(hm)So.{END}"] * 2
    assert len(texts_of(marked, [*talk, *talk])) == 2
    assert answers(marked, [*talk, replace(talk[1], is_target=False)]) == [f"(hm)So.{END}"]


def test_dates_are_fixed_and_variables_are_passed() -> None:
    dated = "{{ strftime_now('%d %B %Y') + date_string }}" + UNMARKED
    check_template(template(dated))
    assert texts_of(dated, TALK)[0].startswith(f"26 July 202426 Jul 2024{START}system")
    later = replace(template(dated), date="2025-02-03", variables={"name": "Ann"})
    [found] = render_answers(replace(later, text="{{ name }}" + dated), Conversation(TALK))
    assert found.text.startswith(f"Ann03 February 202503 Feb 2025{START}system")
    assert ChatTemplate.from_dict(json.loads(json.dumps(later.as_dict()))) == later
    assert template(dated).as_dict().keys() == {"text", "tokens", "specials"}
    with pytest.raises(ValueError, match="may not set tools: kdscale does"):
        ChatConfig(variables={"tools": True})


def test_a_field_is_refused_by_the_records_name_where_the_template_is_known() -> None:
    record = {"messages": as_dicts(TALK[1:3])}
    record["messages"][1]["reasoning_content"] = "hm"
    for text in (CHATML, UNMARKED):
        with pytest.raises(KdscaleError, match=r"of messages\[1\] \(.*\) of a.jsonl#7 is not writ"):
            Fields("text", None, ChatConfig(), template(text)).document(record, "a.jsonl#7")
    # What the template refuses is counted later.
    for text in (THINKING, BLANKS.replace("== 'assistant'", "== 'gpt'")):
        found = Fields("text", None, ChatConfig(), template(text)).document(record, "a.jsonl#7")
        assert load(str(found.content)).messages[1].more == {"reasoning_content": "hm"}
    assert template_to_train(ChatConfig()).text == CHATML


def test_other_fields_go_through_encoding(trained: tuple[Path, TokenizerInfo]) -> None:
    folder, info = trained
    thinking = replace(info, chat=ChatTemplate(THINKING, {}, CHATML_TOKENS))
    found = encode_one(folder, thinking, talk_with({"reasoning_content": "h\u00e9"}))
    assert learned(folder, found) == f"<think>h\u00e9</think>So.{END}"
    assert found.byte_count == len("h\u00e9So.".encode())
    with pytest.raises(KdscaleError, match="is not written by the chat template"):
        encode_one(folder, info, talk_with({"reasoning_content": "hm"}))
    forged = encode_one(folder, thinking, talk_with({"tool_calls": [{"x": [f"a{END}"]}]}))
    assert len(forged.tokens) == 0


def test_other_fields_are_cleaned_and_seen_as_text() -> None:
    steps = [{"kind": "mask_pii"}]
    clean = Cleaner(DataConfig.model_validate({**_CHAT, "cleaning": steps}))
    talk = talk_with({"reasoning_content": "ask jane@example.org\r\n", "tool_calls": [CALL]})
    found = clean(dump(Conversation(talk)))
    assert load(found.text).messages[1].more == {
        "reasoning_content": "ask <EMAIL>",
        "tool_calls": [CALL],
    }
    assert plain_text(found.text).startswith("Why?\n\nSo.\n\nask <EMAIL>\n\nfunction")
    assert (
        clean(dump(Conversation(talk_with({"reasoning_content": "\ud800"})))).status
        == Status.UNDECODABLE
    )
    # Conversations without other fields are written as ever: they are found by their text.
    assert dump(Conversation(TALK[:1])) == '[["system", "Be short.", false]]'


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def test_tools_beside_the_messages_are_read_and_rendered() -> None:
    take = Fields("text", None, ChatConfig())
    talk = {"messages": as_dicts(TALK)}
    # Arrow gives each the fields of all.
    arrow = {"function": {**TOOL["function"], "strict": None}, "type": "function"}
    for tools in ([TOOL], json.dumps([TOOL]), [TOOL["function"]], [arrow]):
        found = load(str(take.document({**talk, "tools": tools}, "a#0").content))
        assert found == Conversation(TALK, [TOOL])
    for nothing in (None, "", [], "[]"):
        assert take.document({**talk, "tools": nothing}, "a#0") == take.document(talk, "a#0")
    for wrong, kind in (("Be kind.", "text that is no JSON"), (["look"], "a list with str")):
        with pytest.raises(KdscaleError, match=f"'tools' of a#0 holds {kind}"):
            take.document({**talk, "tools": wrong}, "a#0")
    record = {**talk, "tools": [TOOL]}
    with pytest.raises(KdscaleError, match="1 tools of a#0 are not written by the chat template"):
        Fields("text", None, ChatConfig(), template(CHATML)).document(record, "a#0")
    writes = template("{{ tools | tojson if tools else '' }}" + UNMARKED)
    document = Fields("text", None, ChatConfig(), writes).document(record, "a#0")
    clean = Cleaner(DataConfig.model_validate(_CHAT))
    kept = load(clean(document.content).text)
    assert kept == Conversation(TALK, [TOOL])
    [found_text] = [each.text for each in render_answers(writes, kept)]
    assert found_text.startswith(json.dumps([TOOL]))
    assert take.columns(["id", "tools", "messages"]) == ["messages", "tools"]


def test_arguments_of_calls_are_objects() -> None:
    text = {"function": {"name": "look", "arguments": '{"at": "the sky"}'}}
    plain = {"function": {"name": "look", "arguments": {"at": "the sky", "for": None}}}
    for call in (text, plain):
        [_, answer] = talk_with({"tool_calls": [call]})
        assert answer.more == {
            "tool_calls": [{"function": {"name": "look", "arguments": {"at": "the sky"}}}]
        }
    [_, answer] = talk_with({"tool_calls": [{"function": {"arguments": "the sky"}}]})
    assert answer.more == {"tool_calls": [{"function": {"arguments": "the sky"}}]}


@pytest.mark.parametrize("field", ["system", "functions"])
def test_what_stands_beside_the_messages_is_refused(field: str) -> None:
    talk = {"messages": as_dicts(TALK)}
    take = Fields("text", None, ChatConfig())
    with pytest.raises(KdscaleError, match=f"a#0 has the field '{field}' beside its messages"):
        take.document({**talk, field: "Be kind."}, "a#0")
    for nothing in (None, "", []):
        assert take.document({**talk, field: nothing}, "a#0") == take.document(talk, "a#0")
    ignoring = Fields("text", None, ChatConfig(ignore=(field,)))
    assert ignoring.document({**talk, field: "Be kind."}, "a#0") == take.document(talk, "a#0")
    assert take.columns(["id", field, "messages"]) == ["messages", field]


def test_steps_of_cleaning_work_on_messages_and_on_the_whole() -> None:
    steps = [
        {"kind": "mask_pii"},
        {"kind": "length", "min_words": 6},
        {"kind": "near_duplicates"},
    ]
    clean = Cleaner(DataConfig.model_validate({**_CHAT, "cleaning": steps}))
    talk = [
        Message("user", " I am jane@example.org.\r\n", False),
        Message("assistant", "Hi!", True),
    ]
    # Neither has enough words, both together have.
    found = clean(dump(Conversation([*talk, Message("user", "Goodbye for now.", False)])))
    assert found.status == Status.KEPT
    assert [m.content for m in load(found.text).messages] == [
        "I am <EMAIL>.",
        "Hi!",
        "Goodbye for now.",
    ]
    assert [m.is_target for m in load(found.text).messages] == [False, True, False]
    assert found.changed == 1
    assert found.bands is not None
    assert clean(dump(Conversation(talk))).status == FIRST_STEP + 1
    assert clean(dump(Conversation([]))).status == Status.SHORT
    assert clean(None).status == Status.UNDECODABLE
    assert (
        clean(dump(Conversation([Message("user", "\ud800", False)]))).status == Status.UNDECODABLE
    )


_CHAT: dict[str, Any] = {
    "train": {"kind": "jsonl", "path": "a.jsonl"},
    "chat": {},
    "min_characters": 1,
}


def test_what_does_not_go_with_conversations_is_refused() -> None:
    with pytest.raises(ValueError, match="varies plain text"):
        DataConfig.model_validate({**_CHAT, "augment": {"steps": [{"kind": "swap"}]}})
    with pytest.raises(ValueError, match="train: a source 'text' holds no conversations"):
        DataConfig.model_validate({**_CHAT, "train": {"kind": "text", "path": "a"}})
    with pytest.raises(ValueError, match="belong together"):
        ChatConfig(prompt="asked")


def test_the_template_counts_in_the_datas_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "one.jinja").write_text(UNMARKED)
    source = {"kind": "jsonl", "path": str(tmp_path / "a.jsonl")}

    def name(**chat: Any) -> Any:
        return data_identity(DataConfig.model_validate({"train": source, "chat": chat}))

    one = name(template=str(tmp_path / "one.jinja"))
    (tmp_path / "one.jinja").write_text(CHATML)
    other = name(template=str(tmp_path / "one.jinja"))
    assert len({json.dumps(each, sort_keys=True) for each in (name(), one, other)}) == 3
    assert name(template=CHATML) != name(template=UNMARKED)
    # What ignores nothing, or has no conversations, is called what it was called before.
    assert "ignore" not in name()["config"]["chat"]
    assert name(ignore=["id"])["config"]["chat"]["ignore"] == ["id"]
    assert not {"date", "variables"} & name()["config"]["chat"].keys()
    assert name(date="2025-01-02")["config"]["chat"]["date"] == "2025-01-02"
    thinks = {"enable_thinking": False}
    assert name(variables=thinks)["config"]["chat"]["variables"] == thinks
    # The same conversations may give other texts than by an earlier kdscale.
    assert name()["chat_rendering"] == RENDERING
    plain = data_identity(DataConfig.model_validate({"train": source}))
    assert "chat" not in plain["config"]
    assert "chat_rendering" not in plain
    with pytest.raises(KdscaleError, match="is not there"):
        name(template=str(tmp_path / "none.jinja"))


def test_the_teachers_tokenizer_gets_the_configs_template(
    trained: tuple[Path, TokenizerInfo], tmp_path: Path
) -> None:
    (tmp_path / "mine.jinja").write_text(UNMARKED)
    config = ChatConfig(template=str(tmp_path / "mine.jinja"))
    info = adopt_tokenizer(trained[0], tmp_path / "copy", chat=config)
    assert info.chat is not None
    assert info.chat.text == UNMARKED
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").chat_template == UNMARKED
    found = encode_one(tmp_path / "copy", info, TALK)
    assert found.tokens.tolist() == encode_one(*trained, TALK).tokens.tolist()
    plain = tmp_path / "plain"
    train_tokenizer(["one two"], 258, plain)
    with pytest.raises(KdscaleError, match="has no chat template"):
        adopt_tokenizer(plain, tmp_path / "other", chat=ChatConfig())


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="`make bench-assets` has not been run")
def test_a_real_template(tmp_path: Path) -> None:
    info = adopt_tokenizer(SMOLLM2, tmp_path, chat=ChatConfig())
    found = encode_one(tmp_path, info, TALK)
    theirs = AutoTokenizer.from_pretrained(SMOLLM2).apply_chat_template(as_dicts(TALK))
    assert found.tokens.tolist() == list(theirs["input_ids"])
    said = [message.content for message in TALK if message.is_target]
    assert learned(tmp_path, found) == "".join(each + END for each in said)
