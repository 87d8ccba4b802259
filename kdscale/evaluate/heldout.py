"""Tasks for lm-eval made of a run's held-out sequences, without network or other data.

A passage is the decoded part of one document in one sequence. Questions are drawn with a fixed
seed, so that the same sequences give the same tasks, for every model and on every machine.
"""

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.data.rows.prepared import Prepared
from kdscale.errors import KdscaleError

CHOICES = 4
_ENDING_WORDS = 10
_LEAST_WORDS = 20  # of a passage
_ROWS_AT_ONCE = 256

# A word behind a single space that has ended: a row may cut the last one short.
_ENDED_WORD = re.compile(r"(?<=\S) (\w{2,})(?=[^\w])")
_WORD = re.compile(r"\s*\S+")

Item = dict[str, Any]


def task_names() -> list[str]:
    """Return the tasks that `write_tasks` can write."""
    return sorted(file.name.removesuffix(".yaml") for file in _templates())


def write_tasks(prepared: Prepared, evaluation_set: str, tokenizer: Any, folder: Path) -> None:
    """Write all tasks on `evaluation_set` to `folder`: YAML and, as JSON lines, data.

    Raises KdscaleError where its passages are too few or too short to ask anything about.
    """
    texts = list(passages(prepared, evaluation_set, tokenizer))
    random = np.random.default_rng(0)
    texts = [texts[place] for place in random.permutation(len(texts))]
    items = {
        "heldout_bits_per_byte": [{"text": text} for text in texts],
        "heldout_cloze": cloze_items(texts, random),
        "heldout_last_word": list(last_word_items(texts)),
    }
    for template in _templates():
        task = template.name.removesuffix(".yaml")
        if not items[task]:
            raise KdscaleError(
                f"The evaluation set {evaluation_set!r} has too few or too short passages for "
                f"{task}: {len(texts)} of {_LEAST_WORDS} words or more.",
                "Choose another one with --on, or raise data.evaluation_sequences or data.seq_len.",
            )
        data = folder / f"{task}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in items[task]), encoding="utf-8")
        # JSON is YAML too. The cache of `datasets` goes with the folder.
        where = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        text = template.read_text(encoding="utf-8")
        (folder / template.name).write_text(f"{text}dataset_kwargs: {json.dumps(where)}\n")


def passages(prepared: Prepared, evaluation_set: str, tokenizer: Any) -> Iterator[str]:
    """Yield the text of every document in every sequence, in order.

    Those of fewer than 20 words are left out.
    """
    table = prepared.split(evaluation_set)
    special = list(prepared.special_ids.values())
    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = table.take(np.arange(start, min(start + _ROWS_AT_ONCE, len(table))))
        for ids, segments in zip(rows.input_ids, rows.segment_ids, strict=True):
            for segment in range(1, int(segments.max()) + 1):
                tokens = ids[segments == segment]
                text = tokenizer.decode(
                    tokens[~np.isin(tokens, special)].tolist(), clean_up_tokenization_spaces=False
                )
                # A row may begin or end within a character.
                text = text.strip("\ufffd")
                if len(text.split()) >= _LEAST_WORDS:
                    yield text


def cloze_items(texts: list[str], random: np.random.Generator) -> list[Item]:
    """Return {"context", "choices", "label"}: passages without their ending, and four endings.

    `label` is the place of the true one. The last word of a passage may be cut short and is left
    out.
    """
    pieces = [_WORD.findall(text)[:-1] for text in texts]
    endings = ["".join(words[-_ENDING_WORDS:]) for words in pieces]
    if len(set(endings)) < CHOICES:
        return []
    items = []
    for words, ending in zip(pieces, endings, strict=True):
        label = int(random.integers(CHOICES))
        choices: list[str] = []
        while len(choices) < CHOICES - 1:
            other = endings[random.integers(len(endings))]
            if other != ending and other not in choices:
                choices.append(other)
        choices.insert(label, ending)
        context = "".join(words[:-_ENDING_WORDS])
        items.append({"context": context, "choices": choices, "label": label})
    return items


def last_word_items(texts: list[str]) -> Iterator[Item]:
    """Yield {"context", "word"}: a passage up to a last whole word, and that word.

    It is the last in the passage's second half that follows a single space.
    """
    for text in texts:
        found = list(_ENDED_WORD.finditer(text, len(text) // 2))
        if found:
            yield {"context": text[: found[-1].start()], "word": found[-1].group(1)}


def _templates() -> list[Any]:
    folder = resources.files("kdscale.evaluate") / "tasks"
    return [file for file in folder.iterdir() if file.name.endswith(".yaml")]
