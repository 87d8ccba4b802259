"""Rows of BBC news with the last hidden states of a teacher, computed once.

Times the teacher's head, 2.3 kB a position are its logits again, so that every codec and the full
distribution come from one forward.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from benchmarks.common import TEACHER, log
from kdscale.cache.format.prior import Prior, count_prior, encode_prior
from kdscale.data.pretrained_tokenizer import load_tokenizer, vocabulary_size
from kdscale.models.forward import model_inputs, row_tensors
from kdscale.models.load import load_model
from kdscale.types import Rows

_ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class Corpus:
    """Rows and the teacher's last hidden states over them."""

    rows: Rows
    hidden: np.ndarray  # [R, T, D] float32, memory-mapped
    head: torch.Tensor  # [V, D] float32, the teacher's
    _log_probs: dict[int, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def vocab_size(self) -> int:
        return len(self.head)

    @property
    def targets(self) -> int:
        return int(self.rows.loss_mask.sum())

    def logits(self, row: int) -> torch.Tensor:
        """Return [P, V] float32 at the targets of a row."""
        hidden = torch.from_numpy(self.hidden[row][self.rows.loss_mask[row]])
        return hidden @ self.head.T

    def log_probs(self, row: int) -> torch.Tensor:
        """Return [P, V] float32 at the targets of a row, and keep them for the next call."""
        if row not in self._log_probs:
            self._log_probs[row] = self.logits(row).log_softmax(-1)
        return self._log_probs[row]

    def labels(self, row: int) -> torch.Tensor:
        """Return the tokens at the targets of a row: [P] int64."""
        found = row_tensors(self.rows.take(np.array([row])), torch.device("cpu"))
        return found.labels[found.mask]

    @cached_property
    def entropy(self) -> np.ndarray:
        """Mean entropy of the teacher over each row, in nats: [R] float32."""
        found = np.empty(len(self), np.float32)
        for row in range(len(self)):
            log_probs = self.logits(row).log_softmax(-1)
            found[row] = -(log_probs.exp() * log_probs).sum(-1).mean()
        return found


def load_corpora(
    assets: Path, folder: Path, seq_len: int, counts: dict[str, int], teacher: str = TEACHER
) -> dict[str, Corpus]:
    """Return the first `counts` rows of `train` and `heldout`; make what is missing in `folder`.

    For a teacher that reads a start token, which later parts of an article lack, every row is the
    start of an article.
    """
    model = assets / teacher
    vocab_size, has_start, articles = _articles(assets, teacher)
    found = {}
    for name, count in counts.items():
        some = articles[name]
        if has_start:
            some = [ids[:seq_len] for ids in some if len(ids) >= seq_len]
        rows = cut(some, seq_len, count)
        path = folder / f"hidden-{teacher}-{name}-{count}x{seq_len}.npy"
        if not path.exists():
            _write_hidden(model, rows, path)
        found[name] = Corpus(rows, np.load(path, mmap_mode="r"), _head(model, vocab_size))
    return found


def corpus_prior(assets: Path, vocab_size: int) -> tuple[Prior, float]:
    """Return the prior that ids are packed by, of all articles, and its stored bytes a token."""
    articles = [ids for part in _articles(assets, TEACHER)[2].values() for ids in part]
    prior = count_prior(
        ((ids[None], (np.arange(len(ids)) < len(ids) - 1)[None]) for ids in articles), vocab_size
    )
    return prior, len(encode_prior(prior)) / sum(map(len, articles))


@cache
def _articles(assets: Path, teacher: str) -> tuple[int, bool, dict[str, list[np.ndarray]]]:
    """Return the vocabulary's size, whether articles have a start token, and all articles.

    Articles are ids, each with the end of a document.
    """
    tokenizer = load_tokenizer(str(assets / teacher))

    def read(name: str) -> list[np.ndarray]:
        lines = (assets / "bbc" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        end = tokenizer.eos_token_id
        return [np.array([*tokenizer(text).input_ids, end], np.int32) for text in texts]

    size = vocabulary_size(tokenizer.get_vocab())
    has_start = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return size, has_start, {name: read(name) for name in ("train", "heldout")}


def cut(articles: Sequence[np.ndarray], seq_len: int, count: int) -> Rows:
    """Cut articles, one after the other, into `count` rows; ValueError where they are too few."""
    ids = np.concatenate(articles)
    numbers = np.repeat(np.arange(len(articles), dtype=np.int32), [len(each) for each in articles])
    shape = (count, seq_len)
    if len(ids) < count * seq_len:
        raise ValueError(f"the articles have {len(ids):,} tokens, too few for {count} rows")
    input_ids, document = (each[: count * seq_len].reshape(shape) for each in (ids, numbers))
    same = np.zeros(shape, np.bool_)
    same[:, :-1] = document[:, 1:] == document[:, :-1]
    samples = np.arange(count, dtype=np.uint64)
    return Rows(
        sample_ids=np.stack([samples, samples], axis=1).view(np.uint8),
        input_ids=input_ids,
        segment_ids=document - document[:, :1] + 1,
        loss_mask=same,
        byte_counts=np.zeros(count),
    )


@torch.no_grad()
def _head(teacher: Path, vocab_size: int) -> torch.Tensor:
    return load_model(teacher).get_output_embeddings().weight.detach()[:vocab_size].clone()


@torch.no_grad()
def _write_hidden(teacher: Path, rows: Rows, path: Path) -> None:
    """Write [R, T, D] float32 to `path`, visible only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = load_model(teacher).eval()
    part = path.with_suffix(".part")
    shape = (*rows.input_ids.shape, model.config.hidden_size)
    out = open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        some = np.arange(first, min(first + _ROWS_AT_ONCE, len(rows)))
        ids, segments, *_ = row_tensors(rows.take(some), torch.device("cpu"))
        found = model.base_model(**model_inputs(model, ids, segments)).last_hidden_state
        out[some] = found.numpy()
        log(f"teacher: {some[-1] + 1} of {len(rows)} rows")
    out.flush()
    part.rename(path)
