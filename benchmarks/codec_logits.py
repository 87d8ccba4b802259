"""Real logits of SmolLM2-135M-Instruct over BBC articles, computed once and kept as float16.

16,384 positions of 49,152 logits take 1.6 GB, so they are a memory-mapped file that is read a few
positions at a time. The prior by which ids are packed is counted from the whole corpus, as that of
a cache over it would be.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from kdscale.cache.format.prior import Prior, count_prior, encode_prior
from kdscale.models.load import load_model

ROW_LENGTH = 512


@dataclass(frozen=True)
class Corpus:
    """Positions with their logits, and the prior of the corpus that they are from."""

    logits: np.ndarray  # [P, V] float16, memory-mapped
    contexts: np.ndarray  # [P] int32: the token at each position
    prior: Prior
    prior_bytes: float  # stored size of the prior over the corpus' tokens

    @property
    def vocab_size(self) -> int:
        return self.logits.shape[1]

    def __len__(self) -> int:
        return len(self.contexts)


def load_corpus(assets: Path, folder: Path, positions: int) -> Corpus:
    """The first `positions` of the held-out articles; logits are made in `folder` where missing."""
    from transformers import AutoTokenizer

    model = assets / "smollm2-135m-instruct"
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = {
        name: [_tokens(tokenizer, text) for text in _texts(assets / "bbc" / f"{name}.jsonl")]
        for name in ("train", "heldout")
    }
    rows = list(_first_positions(texts["heldout"], positions))
    contexts = np.concatenate([row[:-1] for row in rows])
    path = folder / f"logits-{positions}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_logits(model, rows, len(tokenizer), path)
    articles = texts["train"] + texts["heldout"]
    prior = count_prior(((ids[None], _targets(ids)) for ids in articles), len(tokenizer))
    tokens = sum(len(ids) for ids in articles)
    share = len(encode_prior(prior)) / tokens
    return Corpus(np.load(path, mmap_mode="r"), contexts, prior, share)


def _texts(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def _tokens(tokenizer: Any, text: str) -> np.ndarray:
    """[T] int32, an article with the token that ends a document."""
    return np.array([*tokenizer(text).input_ids, tokenizer.eos_token_id], np.int32)


def _targets(ids: np.ndarray) -> np.ndarray:
    """[1, T] bool: every position but the last has a target."""
    mask = np.ones((1, len(ids)), np.bool_)
    mask[0, -1] = False
    return mask


def _first_positions(articles: list[np.ndarray], positions: int) -> Iterator[np.ndarray]:
    """Article beginnings of at most ROW_LENGTH tokens that have `positions` targets together."""
    left = positions
    for ids in articles:
        row = ids[: min(ROW_LENGTH, left + 1)]
        left -= len(row) - 1
        yield row
        if left == 0:
            return
    raise ValueError(f"the corpus has {positions - left} positions, {positions} were asked for")


@torch.no_grad()
def _write_logits(folder: Path, rows: list[np.ndarray], vocab_size: int, path: Path) -> None:
    """[P, V] float16 to `path`, visible only when it is whole."""
    model = load_model(folder).eval()
    part = path.with_suffix(".part")
    count = sum(len(row) - 1 for row in rows)
    out = open_memmap(part, mode="w+", dtype=np.float16, shape=(count, vocab_size))
    done = 0
    for row in rows:
        ids = torch.from_numpy(row.astype(np.int64))[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1, :vocab_size]
        out[done : done + len(logits)] = logits.numpy()
        done += len(logits)
        print(f"logits: {done:,} of {count:,} positions", flush=True)
    out.flush()
    part.rename(path)
