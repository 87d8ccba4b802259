"""Payload of every row of a corpus through each codec, and its stored bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ablation.corpus import Corpus
from benchmarks.common import log
from kdscale.cache.codecs import Codec, make_codec, uniforms
from kdscale.cache.codecs.full import Full
from kdscale.cache.fidelity.codec_families import label
from kdscale.cache.fidelity.stored_size import StoredSize
from kdscale.cache.format.packing import packable
from kdscale.cache.format.prior import count_prior, encode_prior
from kdscale.config.cache import CodecConfig
from kdscale.types import DenseTargets, SparseTargets

_SEED = 0


@dataclass(frozen=True)
class Kept:
    """A corpus through one codec."""

    payload: np.ndarray  # [R, T, bytes a position] uint8; zeros where there is no target
    bytes_decoded: float
    bytes_at_rest: float  # of a target, its share of the prior included
    distinct_ids: float  # of a target, on average


class WholeDistribution(Full):
    """Codec of the full distribution: a position's payload is the teacher's hidden state."""

    def __init__(self, head: torch.Tensor) -> None:
        super().__init__(len(head))
        self._head = head

    def decode(self, payload: torch.Tensor) -> DenseTargets:
        """Decode [P, 4 D] uint8 to the teacher's distribution [P, V]."""
        hidden = payload.contiguous().view(torch.float32)
        return DenseTargets((hidden @ self._head.T).log_softmax(-1))


class Renormalised:
    """Top-k codec as rivals read it: the mass of the k ids is scaled up to 1."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def decode(self, payload: torch.Tensor) -> SparseTargets:
        """Decode [P, bytes] uint8 to the k listed ids, their probabilities summing to 1."""
        found = self._codec.decode(payload)
        assert isinstance(found, SparseTargets)
        return SparseTargets(found.ids, found.probs / found.probs.sum(-1, keepdim=True))


@torch.no_grad()
def keep(configs: Mapping[str, CodecConfig], corpus: Corpus, folder: Path) -> dict[str, Kept]:
    """Return `corpus` through every codec, by name; `folder` keeps what was encoded before."""
    paths = {name: folder / f"{_stem(config, corpus)}.npz" for name, config in configs.items()}
    missing = {path: configs[name] for name, path in paths.items() if not path.exists()}
    if missing:
        _encode(missing, corpus)
    return {name: _load(path) for name, path in paths.items()}


def _encode(configs: Mapping[Path, CodecConfig], corpus: Corpus) -> None:
    rows = corpus.rows
    prior = count_prior([(rows.input_ids, rows.loss_mask)], corpus.vocab_size)
    share = len(encode_prior(prior)) / corpus.targets
    codecs = {path: make_codec(config, corpus.vocab_size) for path, config in configs.items()}
    rests = {path: StoredSize(codec, prior) for path, codec in codecs.items()}
    shape = rows.input_ids.shape
    whole = {
        path: np.zeros((*shape, codec.bytes_per_position), np.uint8)
        for path, codec in codecs.items()
    }
    ids = dict.fromkeys(codecs, 0)
    for row in range(len(corpus)):
        mask = corpus.rows.loss_mask[row]
        for path, payload in _payloads(codecs, corpus, row).items():
            whole[path][row, mask] = payload
            rests[path].add(_contexts(corpus, row), payload)
            ids[path] += _distinct(codecs[path], payload)
        log(f"codecs: {row + 1} of {len(corpus)} rows")
    for path, codec in codecs.items():
        rest = rests[path].bytes_per_position() + (share if packable(codec) else 0)
        figures = np.array([codec.bytes_per_position, rest, ids[path] / corpus.targets])
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, payload=whole[path], figures=figures)
        part.rename(path)


def _payloads(codecs: Mapping[Any, Codec], corpus: Corpus, row: int) -> dict[Any, np.ndarray]:
    """Return the targets of a row through each codec, [P, bytes] uint8."""
    logits, found = corpus.logits(row), {}
    mask = torch.from_numpy(corpus.rows.loss_mask[row])
    sample = torch.from_numpy(corpus.rows.sample_ids[row : row + 1])
    for name, codec in codecs.items():
        noise = uniforms(_SEED, sample, len(mask), codec.streams)[0][mask]
        found[name] = codec.encode(logits, noise).payload.numpy()
    return found


def _contexts(corpus: Corpus, row: int) -> np.ndarray:
    return corpus.rows.input_ids[row][corpus.rows.loss_mask[row]]


def _distinct(codec: Codec, payload: np.ndarray) -> int:
    """Count the ids with some probability, each once a position."""
    found = codec.decode(torch.from_numpy(payload))
    assert isinstance(found, SparseTargets)
    ids = torch.where(found.probs > 0, found.ids, -1).sort(dim=-1).values
    is_new = torch.ones_like(ids, dtype=torch.bool)
    is_new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return int((is_new & (ids >= 0)).sum())


def _stem(config: CodecConfig, corpus: Corpus) -> str:
    rows, length = corpus.rows.input_ids.shape
    return "-".join([*label(config).split(), f"{rows}x{length}"])


def _load(path: Path) -> Kept:
    with np.load(path) as file:
        decoded, rest, ids = file["figures"].tolist()
        return Kept(file["payload"], decoded, rest, ids)
