"""The tokenizer that teacher and student share: trained here, or the teacher's own.

Either way the result is a folder that `AutoTokenizer` loads, and its `tokenizer.json` is all that
the Ray tasks need: they use the `tokenizers` library alone, because importing transformers takes
seconds in every worker.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.errors import KdscaleError

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class TokenizerInfo:
    """What the manifest says of a tokenizer. A document is [start_id] + its tokens + [end_id]."""

    vocab_size: int
    sha256: str
    start_id: int
    end_id: int
    pad_id: int
    mask_id: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, folder: Path, *, masks: bool = False
) -> TokenizerInfo:
    """Train a byte-level BPE on `texts` and write it to `folder`.

    One special token is start, end and padding; another one the mask, where it `masks`. Any text
    can be encoded and decoded without loss. The same texts give the same file, whatever their order
    or the number of threads. Texts too few for the size asked give a smaller vocabulary: see
    `vocab_size` of the result.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, MASK] if masks else [END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        **({"mask_token": MASK} if masks else {}),
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    end_id = tokenizer.token_to_id(END_OF_TEXT)
    assert end_id is not None, "the trainer was told to include it"
    info = _info(folder, len(tokenizer.get_vocab()), end_id, end_id, end_id)
    return replace(info, mask_id=tokenizer.token_to_id(MASK)) if masks else info


def adopt_tokenizer(source: Path, folder: Path) -> TokenizerInfo:
    """Write the teacher's tokenizer in `source` to `folder`, without the teacher's other files.

    Raises KdscaleError where it cannot be loaded or has no end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise KdscaleError(
            f"The teacher's tokenizer in {str(source)!r} cannot be loaded: {error}",
            "Give teacher.load a Hugging Face folder that holds the tokenizer's files too.",
        ) from error
    if not tokenizer.is_fast:
        raise KdscaleError(
            f"The teacher's tokenizer in {str(source)!r} has no `tokenizer.json` form.",
            "Convert it to a fast tokenizer and save it beside the teacher's weights.",
        )
    # Encoders call the two ends of a text otherwise.
    end_id = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
    if end_id is None:
        raise KdscaleError(
            f"The teacher's tokenizer in {str(source)!r} names no end-of-text token.",
            "Set `eos_token` in its tokenizer_config.json: documents are separated by it.",
        )
    tokenizer.save_pretrained(folder)
    start_id = _first(tokenizer.bos_token_id, tokenizer.cls_token_id, end_id)
    pad_id = _first(tokenizer.pad_token_id, end_id)
    assert start_id is not None
    assert pad_id is not None
    info = _info(folder, len(tokenizer), start_id, end_id, pad_id)
    return replace(info, mask_id=tokenizer.mask_token_id)


def encode(
    tokenizer_json: str, info: TokenizerInfo, texts: list[str]
) -> Iterator[tuple[np.ndarray, int]]:
    """For each text its tokens ([n + 2] int32, start and end included) and its UTF-8 bytes.

    A text that happens to hold a special token's spelling is encoded as plain characters: it cannot
    forge the end of a document.
    """
    encodings = _load(tokenizer_json).encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        tokens = np.array([info.start_id, *encoding.ids, info.end_id], np.int32)
        yield tokens, len(text.encode("utf-8"))


@lru_cache(maxsize=1)
def _load(tokenizer_json: str) -> Any:
    """The tokenizer of a process: parsing a large vocabulary takes a second."""
    # Each Ray task has one CPU; threads of several would fight for it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    # Some published files carry the settings of the run that saved them.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _first(*ids: int | None) -> int | None:
    """The first that there is."""
    return next((number for number in ids if number is not None), None)


def _info(folder: Path, vocab_size: int, start_id: int, end_id: int, pad_id: int) -> TokenizerInfo:
    digest = hashlib.sha256((folder / TOKENIZER_FILE).read_bytes()).hexdigest()
    return TokenizerInfo(vocab_size, digest, start_id, end_id, pad_id)
