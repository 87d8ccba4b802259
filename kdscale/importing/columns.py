"""Sets in plain columns: ids and log-probabilities a position, as vLLM and axolotl have them.

Tokens are in `input_ids`, `prompt_token_ids` or `tokens`. The distributions are either in two
columns of lists, ids (`top_ids`, `top_token_ids`, `topk_ids`, `target_token_ids`) and values
(`top_logprobs`, `topk_logprobs`, `target_logprobs`), or in one column of entries
(`prompt_logprobs`, `logprobs`), where an entry is

- vLLM's: a dict from id to {logprob, rank}, or to a number. It also lists the actual token where
  that is not among the k: of a sequence whose shortest entry has k ids, ranks beyond k are left
  out. `outputs`, with `token_ids` and `logprobs`, follow on the prompt.
- axolotl's, and the OpenAI API's: a list of {token, logprob}, `token` being "token_id:123" or a
  text that one id alone stands for.

Where there are fewer entries than tokens, they end at the last token: each is about its own, as the
API gives them for an answer. As many as tokens, the first one empty (vLLM), are about their own as
well; none of them empty, about the next token, which `align` may change.

What is a target may be told by `loss_mask` (about a token), `labels` (-100: no target) or
`attention_mask` (0: padding; numbers from 1: documents of a packed row).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kdscale.errors import KdscaleError
from kdscale.importing.files import Record, is_null, matrix, plain, records, vector
from kdscale.importing.sequence import Ragged, Sequence, first_token, ragged, sequence_from_lists

ROLES: dict[str, tuple[str, ...]] = {
    "tokens": ("input_ids", "prompt_token_ids", "tokens"),
    "ids": ("top_ids", "top_token_ids", "topk_ids", "target_token_ids"),
    "values": ("top_logprobs", "topk_logprobs", "target_logprobs"),
    "entries": ("prompt_logprobs", "logprobs"),
    "messages": ("messages", "messages_combined", "conversations"),
}
"""What a column is for, and the names that it may have; the first that is there."""

_MASKS = ("loss_mask", "labels", "attention_mask")
_OUTPUTS = "outputs"
_IGNORED = -100
_ID_PREFIX = "token_id:"

TokenOf = Callable[[str], int | None]
"""From a token's text to its id; None where no id, or more than one, has that text."""

TokensOf = Callable[[list[dict[str, Any]]], list[int]]
"""From a conversation to its tokens, by the tokenizer's chat template."""


@dataclass(frozen=True)
class Columns:
    """A set whose `columns` are named by what they are for: see ROLES."""

    files: list[tuple[str, str]]
    columns: Mapping[str, str]
    token_of: TokenOf
    tokens_of: TokensOf
    align: Literal["auto", "next", "own"] = "auto"
    layout: str = "plain columns"
    values: str = "logprobs"
    tolerance: float = field(default=0.02)

    @property
    def options(self) -> dict[str, Any]:
        """See `Reader.options`."""
        return {"columns": dict(self.columns), "align": self.align}

    def sequences(self) -> Iterator[Sequence]:
        """See `Reader.sequences`."""
        names = (*self.columns.values(), *_MASKS, _OUTPUTS)
        for file in self.files:
            for where, record in records(file, names):
                yield self._sequence(where, record)

    def _sequence(self, where: str, record: Record) -> Sequence:
        tokens = self._tokens(where, record)
        if "entries" in self.columns:
            tokens, ids, values = self._from_entries(where, record, tokens)
        else:
            ids, values = (
                matrix(where, self.columns[role], self._value(where, record, role))
                for role in ("ids", "values")
            )
        first = self._first(where, len(tokens), ids.counts)
        segments, is_target = _masks(where, record, len(tokens))
        return sequence_from_lists(where, tokens, ids, values, first, segments, is_target)

    def _first(self, where: str, tokens: int, counts: np.ndarray) -> int:
        first_is_empty = len(counts) > 0 and counts[0] == 0
        about_next = not first_is_empty if self.align == "auto" else self.align == "next"
        return first_token(where, tokens, len(counts), about_next=about_next)

    def _tokens(self, where: str, record: Record) -> np.ndarray:
        if "tokens" in self.columns:
            value = self._value(where, record, "tokens")
            return vector(where, self.columns["tokens"], value).astype(np.int64)
        messages = plain(self._value(where, record, "messages"))
        return np.array(self.tokens_of(messages), np.int64)

    def _from_entries(
        self, where: str, record: Record, tokens: np.ndarray
    ) -> tuple[np.ndarray, Ragged, Ragged]:
        entries = list(_entry_list(plain(self._value(where, record, "entries"))))
        outputs = plain(record[_OUTPUTS]) if not is_null(record.get(_OUTPUTS)) else []
        for answer in outputs[:1]:
            tokens = np.append(tokens, np.array(answer["token_ids"], np.int64))
            entries += _entry_list(answer.get("logprobs") or [])
        found = [json.loads(each) if isinstance(each, str) else each for each in entries]
        # Some have the actual token more.
        k = min((len(each) for each in found if each), default=0)
        pairs = [self._entry(f"{where}, entry {n}", entry, k) for n, entry in enumerate(found)]
        return tokens, ragged([p[0] for p in pairs]), ragged([p[1] for p in pairs])

    def _entry(self, where: str, entry: Any, k: int) -> tuple[list[int], list[float]]:
        """Return the ids and values of one entry; of a sequence whose shortest has `k` ids."""
        if not entry:
            return [], []
        if isinstance(entry, Mapping):
            return _of_vllm(entry, k)
        if not isinstance(entry, list) or not all(isinstance(each, Mapping) for each in entry):
            raise KdscaleError(
                f"{where} is {str(entry)[:80]!r}: neither a dict from ids nor a list of tokens "
                "with their log-probabilities.",
                'Write {"ID": {"logprob": ...}} as vLLM, or [{"token": "token_id:ID", "logprob": '
                "...}] as axolotl takes it.",
            )
        return [self._id(where, each) for each in entry], [each["logprob"] for each in entry]

    def _id(self, where: str, token: Mapping[str, Any]) -> int:
        for name in ("token_id", "id"):
            if token.get(name) is not None:
                return int(token[name])
        text = str(token.get("token"))
        if text.startswith(_ID_PREFIX):
            return int(text.removeprefix(_ID_PREFIX))
        found = self.token_of(text)
        if found is None:
            raise KdscaleError(
                f"{where}: the token {text!r} is that of no id of the tokenizer, or of several.",
                "Capture ids: start vLLM's server with --return-tokens-as-token-ids.",
            )
        return found

    def _value(self, where: str, record: Record, role: str) -> Any:
        name = self.columns[role]
        value = record.get(name)
        if is_null(value):
            raise KdscaleError(
                f"{where}: the column {name!r} is empty.",
                f"Take the record out, or name another column: --column {role}=NAME.",
            )
        return value


def _of_vllm(entry: Mapping[Any, Any], k: int) -> tuple[list[int], list[float]]:
    """Return ids and values of a dict from ids; of ranked ones the first `k`.

    The actual token is listed whatever its rank.
    """
    found = {int(token): value for token, value in entry.items() if value is not None}
    if not all(isinstance(value, Mapping) for value in found.values()):
        return list(found), list(found.values())
    kept = {
        token: value["logprob"]
        for token, value in found.items()
        if value.get("rank") is None or value["rank"] <= k
    }
    return list(kept), list(kept.values())


def _entry_list(entries: Any) -> list[Any]:
    """Return the entries; of the OpenAI API's object its `content`, each with `top_logprobs`."""
    if isinstance(entries, str):
        entries = json.loads(entries)
    if isinstance(entries, Mapping) and entries.get("content") is not None:
        return [each.get("top_logprobs") for each in entries["content"]]
    return list(entries)


def _masks(where: str, record: Record, tokens: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the documents' numbers and which tokens may be targets, each where it is told."""
    found = {
        name: vector(where, name, record[name])
        for name in _MASKS
        if name in record and not is_null(record[name])
    }
    for name, values in found.items():
        if len(values) != tokens:
            raise KdscaleError(
                f"{where}: {len(values)} values of {name!r} for {tokens} tokens.",
                f"Write one value of {name!r} for each token, or leave the column out.",
            )
    is_target = None
    if "loss_mask" in found:
        is_target = found["loss_mask"].astype(bool)
    if "labels" in found:
        labelled = found["labels"] != _IGNORED
        is_target = labelled if is_target is None else is_target & labelled
    segments = found["attention_mask"].astype(np.int64) if "attention_mask" in found else None
    return segments, is_target
