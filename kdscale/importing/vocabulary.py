"""The tokenizer of an imported set: adopted as a run adopts its teacher's, and asked for tokens."""

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from kdscale.data.pretrained_tokenizer import load_tokenizer
from kdscale.data.tokenizer import TokenizerInfo, adopt_pretrained
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import loadable

_ROLES = {"human": "user", "gpt": "assistant"}


def adopt(source: str, revision: str | None, folder: Path) -> TokenizerInfo:
    """Write the tokenizer at `source` (folder, URL or hub name) to the empty `folder`.

    KdscaleError where there is none.
    """
    try:
        return adopt_pretrained(loadable(source, weights=False), revision, folder, "teacher")
    except KdscaleError as error:
        raise KdscaleError(
            f"The tokenizer: {error.problem}",
            "Give the teacher's tokenizer: --tokenizer FOLDER, URL or hub name.",
        ) from error


class Vocabulary:
    """Tokens and texts of the tokenizer in a folder."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(str(folder))

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def token_of(self, text: str) -> int | None:
        """Return the id that alone has this text; None where there is none, or several."""
        return self._ids.get(text)

    def tokens_of(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the tokens of a conversation by the tokenizer's own chat template."""
        turns = [
            {
                "role": _ROLES.get(str(m.get("from")), m.get("from")) or m.get("role"),
                "content": m.get("content", m.get("value")),
            }
            for m in messages
        ]
        if not self._tokenizer.chat_template:
            raise KdscaleError(
                "The set has conversations and no tokens, and the tokenizer has no chat template.",
                "Write the tokens that the teacher saw to a column input_ids.",
            )
        text = self._tokenizer.apply_chat_template(turns, tokenize=False)
        found: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    @cached_property
    def _ids(self) -> dict[str, int]:
        size = len(self._tokenizer)
        texts = self._tokenizer.batch_decode([[number] for number in range(size)])
        counts = Counter(texts)
        return {text: number for number, text in enumerate(texts) if counts[text] == 1}
