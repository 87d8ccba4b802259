"""Rows of BBC news with what SmolLM2-135M-Instruct says of them, computed once.

What is kept of the teacher are its last hidden states, 2.3 kB a position: times its head they are
its logits again, so that every codec and the full distribution come from one forward.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

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
        """[P, V] float32 at the targets of a row."""
        hidden = torch.from_numpy(self.hidden[row][self.rows.loss_mask[row]])
        return hidden @ self.head.T

    def log_probs(self, row: int) -> torch.Tensor:
        """[P, V] float32 at the targets of a row; kept, for corpora that are scored on often."""
        if row not in self._log_probs:
            self._log_probs[row] = self.logits(row).log_softmax(-1)
        return self._log_probs[row]

    def labels(self, row: int) -> torch.Tensor:
        """[P] int64: the tokens at the targets of a row."""
        found = row_tensors(self.rows.take(np.array([row])), torch.device("cpu"))
        return found.labels[found.mask]

    @cached_property
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean entropy of the teacher and its mean negative log-likelihood of the labels, in nats,
        of each row: [R] float32 both."""
        found = np.empty((2, len(self)), np.float32)
        for row in range(len(self)):
            log_probs = self.logits(row).log_softmax(-1)
            at_labels = log_probs.gather(-1, self.labels(row)[:, None])
            found[:, row] = -(log_probs.exp() * log_probs).sum(-1).mean(), -at_labels.mean()
        return found[0], found[1]


def load_corpora(
    assets: Path, folder: Path, seq_len: int, counts: dict[str, int]
) -> dict[str, Corpus]:
    """The first `counts` rows of `train` and `heldout`; what is missing is made in `folder`."""
    from transformers import AutoTokenizer

    teacher = assets / "smollm2-135m-instruct"
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    found = {}
    for name, count in counts.items():
        rows = read_rows(tokenizer, assets / "bbc" / f"{name}.jsonl", seq_len, count)
        path = folder / f"hidden-{name}-{count}x{seq_len}.npy"
        if not path.exists():
            _write_hidden(teacher, rows, path)
        found[name] = Corpus(rows, np.load(path, mmap_mode="r"), _head(teacher, len(tokenizer)))
    return found


def read_rows(tokenizer: Any, path: Path, seq_len: int, count: int) -> Rows:
    """The articles of a file one after the other, each closed by the token that ends a document,
    cut into `count` rows."""
    stream: list[int] = []
    documents: list[int] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        ids = [*tokenizer(json.loads(line)["text"]).input_ids, tokenizer.eos_token_id]
        stream += ids
        documents += [number] * len(ids)
        if len(stream) >= count * seq_len:
            break
    else:
        raise ValueError(f"{path.name} has {len(stream):,} tokens, too few for {count} rows")
    shape = (count, seq_len)
    input_ids = np.array(stream[: count * seq_len], np.int32).reshape(shape)
    document = np.array(documents[: count * seq_len], np.int32).reshape(shape)
    same = np.zeros(shape, np.bool_)
    same[:, :-1] = document[:, 1:] == document[:, :-1]
    numbers = np.arange(count, dtype=np.uint64)
    return Rows(
        sample_ids=np.stack([numbers, numbers], axis=1).view(np.uint8),
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
    """[R, T, D] float32 to `path`, visible only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = load_model(teacher).eval()
    part = path.with_suffix(".part")
    shape = (*rows.input_ids.shape, model.config.hidden_size)
    out = open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        some = np.arange(first, min(first + _ROWS_AT_ONCE, len(rows)))
        ids, segments, _, _ = row_tensors(rows.take(some), torch.device("cpu"))
        found = model.base_model(**model_inputs(model, ids, segments)).last_hidden_state
        out[some] = found.numpy()
        print(f"teacher: {some[-1] + 1} of {len(rows)} rows", flush=True)
    out.flush()
    part.rename(path)
