"""Chats of the families: their templates, tokenizers with their tokens, conversations."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kdscale.data.chat.training import training_templates

DATA = Path(__file__).parent / "data" / "chat"
Record = dict[str, Any]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "The city's name"}},
                "required": ["city"],
            },
        },
    }
]


@dataclass(frozen=True)
class Family:
    """A published template and the tokens of its tokenizer."""

    name: str
    specials: tuple[str, ...]
    tokens: dict[str, str]
    asks: str  # the text with which a prompt ends, where nothing asks for an answer
    training: str | None
    """The training template that fits."""

    supports: tuple[str, ...] = ("system", "no system")
    """Conversations that it renders without loss."""

    plain: tuple[str, ...] = ()
    """Added tokens that are not special."""

    dates: dict[str, str] = field(default_factory=dict)
    """What stands in the reference for calls that write today's date."""

    @property
    def template(self) -> str:
        """The published text; of licences that do not allow that, ours without its marks."""
        path = DATA / f"{self.name}.jinja"
        if path.exists():
            return path.read_text()
        assert self.training is not None
        return unmarked(training_templates()[self.training])


def unmarked(template: str) -> str:
    """Return a template without its marks around answers."""
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "{%- if true %}{%- endif %}", template)


_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_OF_CHATML = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_QWEN = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>")
_LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_OF_LLAMA = {"bos_token": _LLAMA[0], "eos_token": _LLAMA[-1]}
_GEMMA = ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
_OF_GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
_MISTRAL = (
    *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"),
    *("[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
)
_OF_MISTRAL = {"bos_token": "<s>", "eos_token": "</s>"}
_PLAIN = ("system", "no system", "empty", "blanks", "parts", "some")
_CALLS = (*_PLAIN, "tools")
_THOUGHTS = ("thoughts", "thoughts in the text", "thoughts and tools")
_ASKS_CHATML = "<|im_start|>assistant\n"
_ASKS_LLAMA = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_ASKS_GEMMA = "<start_of_turn>model\n"

FAMILIES = {
    family.name: family
    for family in (
        Family(
            *("qwen3", _CHATML, _OF_CHATML, _ASKS_CHATML, "qwen3"),
            supports=(*_CALLS, "text and calls", *_THOUGHTS),
            plain=_QWEN,
        ),
        Family(
            *("qwen3_instruct_2507", _CHATML, _OF_CHATML, _ASKS_CHATML, None),
            supports=(*_CALLS, "text and calls", "thoughts in the text"),
            plain=_QWEN[2:],
        ),
        Family(
            *("qwen2_5", _CHATML, _OF_CHATML, _ASKS_CHATML, "qwen2_5"),
            supports=(*_CALLS, "text and calls", "thoughts in the text"),
            plain=_QWEN[2:],
        ),
        Family(
            *("smollm2", _CHATML, _OF_CHATML, _ASKS_CHATML, "smollm2"),
            supports=(*_PLAIN, "thoughts in the text"),
        ),
        Family(
            *("smollm3", _CHATML, _OF_CHATML, _ASKS_CHATML, "smollm3"),
            supports=(*_PLAIN, "thoughts in the text"),
            plain=_QWEN[:2],
            dates={'strftime_now("%d %B %Y")': '"26 July 2024"'},
        ),
        Family(
            *("llama3", _LLAMA, _OF_LLAMA, _ASKS_LLAMA, "llama3"),
            supports=(*_PLAIN, "thoughts in the text"),
        ),
        Family(
            *("llama3_1", _LLAMA, _OF_LLAMA, _ASKS_LLAMA, "llama3_1"),
            supports=(*_CALLS, "thoughts in the text"),
        ),
        Family(
            *("gemma2", _GEMMA, _OF_GEMMA, _ASKS_GEMMA, "gemma2"),
            supports=("no system", "blanks", "parts", "some", "thoughts in the text"),
        ),
        Family(
            *("gemma3", _GEMMA, _OF_GEMMA, _ASKS_GEMMA, "gemma3"),
            supports=(*_PLAIN, "thoughts in the text"),
        ),
        Family(
            *("mistral_7b_v0_3", _MISTRAL, _OF_MISTRAL, "[/INST]", "mistral"),
            supports=(*_CALLS, "thoughts in the text"),
        ),
        Family(
            *("mistral_nemo", _MISTRAL, _OF_MISTRAL, "[/INST]", "mistral_nemo"),
            supports=(*_CALLS, "thoughts in the text"),
        ),
        Family(
            "mistral_small_3",
            (*_MISTRAL, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
            *(_OF_MISTRAL, "[/INST]", None),
            supports=(*_PLAIN, "thoughts in the text"),
            dates={'strftime_now("%Y-%m-%d")': '"2024-07-26"'},
        ),
    )
}


def user(content: Any) -> Record:
    return {"role": "user", "content": content}


def said(content: Any, **more: Any) -> Record:
    return {"role": "assistant", "content": content, **more}


def call(city: str, number: int) -> Record:
    function = {"name": "weather", "arguments": {"city": city}}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def gave(text: str, number: int) -> Record:
    return {"role": "tool", "name": "weather", "content": text, "tool_call_id": f"call0000{number}"}


SYSTEM = {"role": "system", "content": "Be short."}
_TALK = [
    user("Why is the sky blue?"),
    said("Scattering."),
    user("And red?"),
    said("The same \u2600."),
]
_CALLING = [
    user("Weather in Paris and Rome?"),
    said("", tool_calls=[call("Paris", 1)]),
    gave("Sun.", 1),
    said(None, tool_calls=[call("Rome", 2)]),
    gave("Rain.", 2),
    said("Sun there, rain here."),
    user("And in \u00d6ttingen?"),
    said(None, tool_calls=[call("\u00d6ttingen", 3)]),
    gave("Snow.", 3),
    said("Snow."),
]
_THINKING = [
    user("What is 2 + 2?"),
    said("Four.", reasoning_content="Two and two."),
    user("And 3 + 3?"),
    said("Six.", reasoning_content="Three\n\nand three."),
    user("Thanks."),
    said("Welcome."),
]

CONVERSATIONS: dict[str, Record] = {
    "system": {"messages": [SYSTEM, *_TALK]},
    "no system": {"messages": [*_TALK, user("Thanks.")]},
    "empty": {"messages": [SYSTEM, user("Wait."), said(""), *_TALK]},
    "blanks": {"messages": [user(" Why?\n"), said("\n So. \n\n"), *_TALK]},
    "parts": {
        "messages": [
            user([{"type": "text", "text": "Why"}, {"type": "text", "text": " so?"}]),
            said([{"type": "text", "text": "It is."}]),
        ]
    },
    "some": {"messages": [*_TALK[:1], said("Wrong.", weight=0), *_TALK[2:]]},
    "tools": {"messages": [SYSTEM, *_CALLING], "tools": TOOLS},
    "text and calls": {
        "messages": [
            user("Weather in Paris and Rome?"),
            said("I look.", tool_calls=[call("Paris", 1), call("Rome", 2)]),
            gave("Sun.", 1),
            gave("Rain.", 2),
            said("Sun there, rain here."),
        ],
        "tools": TOOLS,
    },
    "thoughts": {"messages": [SYSTEM, *_THINKING]},
    "thoughts in the text": {
        "messages": [
            user("What is 2 + 2?"),
            said("<think>\nTwo and two.\n</think>\n\nFour."),
            user("And 3 + 3?"),
            said("<think>\nThree.\n</think>\n\nSix."),
        ]
    },
    "thoughts and tools": {
        "messages": [
            *_THINKING[:2],
            _CALLING[0],
            said("", tool_calls=[call("Paris", 1)], reasoning_content="I look."),
            gave("Sun.", 1),
            said(None, tool_calls=[call("Rome", 2)]),
            gave("Rain.", 2),
            said("Sun there, rain here.", reasoning_content="Both."),
            *_CALLING[6:],
        ],
        "tools": TOOLS,
    },
}


@cache
def _trained(kind: str) -> str:
    """Return a small tokenizer's JSON: of bytes, or as SentencePiece with byte fallback."""
    texts = [
        "why is the sky so blue and red when the sun is there",
        "Weather in Paris and Rome",
    ] * 5
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet, first = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback()]
        )
        alphabet, first = [], ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def make_tokenizer(family: Family, kind: str, folder: Path) -> PreTrainedTokenizerFast:
    """Save a tokenizer with the family's tokens and template to `folder`, and return it."""
    whole = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(kind)), clean_up_tokenization_spaces=False
    )
    whole.add_special_tokens({"additional_special_tokens": list(family.specials), **family.tokens})
    whole.add_tokens(list(family.plain))
    whole.chat_template = family.template
    whole.save_pretrained(folder)
    return whole


def learned_turns(
    tokenizer: Any, family: Family, record: Record, variables: dict[str, Any]
) -> list[tuple[list[int], list[int]]]:
    """Return the ids of each prompt and of what is generated then, by transformers alone.

    A turn ends with its special token. Blanks around texts are stripped.
    """
    template = family.template
    for written, date in family.dates.items():
        template = template.replace(written, date)
    options: dict[str, Any] = {"chat_template": template, "date_string": "26 Jul 2024", **variables}
    if "tools" in record:
        options["tools"] = record["tools"]
    messages = [{**message, "content": text_of(message)} for message in record["messages"]]

    def write(until: Sequence[Record], prompt: bool = False) -> str:
        plain = [{k: v for k, v in each.items() if k != "weight"} for each in until]
        options_of = {"add_generation_prompt": prompt, "tokenize": False, **options}
        return str(tokenizer.apply_chat_template(plain, **options_of))

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    found = []
    for at, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        if not (message["content"] or message.get("tool_calls")):
            continue
        prompt, whole = write(messages[:at], prompt=True), write(messages[: at + 1])
        # Mistral's moves the system message to the last question, and away with the answer to it.
        asks = prompt.rpartition(family.asks)[1] or "[/TOOL_RESULTS]"
        answer = whole[len(prompt) :] if whole.startswith(prompt) else whole.rpartition(asks)[2]
        before, both = ids(prompt), ids(prompt + answer)
        assert both[: len(before)] == before
        specials = {tokenizer.convert_tokens_to_ids(token) for token in family.specials}
        end = max(n for n, token in enumerate(both) if token in specials)
        found.append((before, both[len(before) : end + 1]))
    return found


def text_of(message: Record) -> str:
    """Return a message's text without outer blanks."""
    content = message["content"] or ""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return str(content).strip()
