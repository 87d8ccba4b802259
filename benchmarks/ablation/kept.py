"""What each codec keeps of a corpus: the payload of every row, and its bytes at rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ablation.corpus import Corpus
from kdscale.audit.families import FAMILIES, size_within
from kdscale.audit.rest import AtRest
from kdscale.cache.codecs import Codec, make_codec, uniforms
from kdscale.cache.format.packing import packable
from kdscale.cache.format.prior import Prior, count_prior, encode_prior
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


class WholeDistribution:
    """The codec of the full distribution: a position's payload is the teacher's hidden state."""

    def __init__(self, head: torch.Tensor) -> None:
        self._head = head

    def decode(self, payload: torch.Tensor) -> DenseTargets:
        """[P, 4 D] uint8 -> the teacher's distribution [P, V]."""
        hidden = payload.contiguous().view(torch.float32)
        return DenseTargets((hidden @ self._head.T).log_softmax(-1))


class Renormalised:
    """A top-k codec as rivals read it: what the k have is scaled up to 1."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def decode(self, payload: torch.Tensor) -> SparseTargets:
        """[P, bytes] uint8 -> the k listed ids, their probabilities summing to 1."""
        found = self._codec.decode(payload)
        assert isinstance(found, SparseTargets)
        return SparseTargets(found.ids, found.probs / found.probs.sum(-1, keepdim=True))


def count_corpus_prior(corpus: Corpus) -> tuple[Prior, float]:
    """The prior of the corpus' own tokens, and its bytes over the targets."""
    rows = corpus.rows
    prior = count_prior([(rows.input_ids, rows.loss_mask)], corpus.vocab_size)
    return prior, len(encode_prior(prior)) / corpus.targets


@torch.no_grad()
def keep(
    configs: Mapping[str, CodecConfig], corpus: Corpus, folder: Path, rows: int | None = None
) -> dict[str, Kept]:
    """`corpus` (its first `rows` rows) through every codec, by name. What `folder` has is read from
    there: encoding takes a product with the teacher's head a row."""
    missing = {name: config for name, config in configs.items() if not _path(folder, name).exists()}
    if missing:
        _encode(missing, corpus, folder, rows or len(corpus))
    return {name: _load(_path(folder, name)) for name in configs}


def sizes_within(
    name: str, budgets: list[int], corpus: Corpus, rows: int
) -> dict[int, CodecConfig]:
    """For each budget in bytes at rest, the codec of the family `name` with the most ids that fits;
    measured on the first `rows` rows."""
    family = next(family for family in FAMILIES if family.name == name)
    prior, share = count_corpus_prior(corpus)
    sizes = sorted({size for budget in budgets for size in family.sizes(budget, 1 << 17)})
    codecs = {size: make_codec(family.make(size), corpus.vocab_size) for size in sizes}
    rests = {size: AtRest(codec, prior) for size, codec in codecs.items()}
    for row in range(rows):
        for size, payload in _payloads(codecs, corpus, row).items():
            rests[size].add(_contexts(corpus, row), payload)
    found = {size: rest.bytes_per_position() + share for size, rest in rests.items()}
    fitting = {budget: size_within(budget, found) for budget in budgets}
    return {budget: family.make(size) for budget, size in fitting.items() if size is not None}


def _encode(configs: Mapping[str, CodecConfig], corpus: Corpus, folder: Path, rows: int) -> None:
    prior, share = count_corpus_prior(corpus)
    codecs = {name: make_codec(config, corpus.vocab_size) for name, config in configs.items()}
    rests = {name: AtRest(codec, prior) for name, codec in codecs.items()}
    shape = corpus.rows.input_ids.shape
    whole = {
        name: np.zeros((*shape, codec.bytes_per_position), np.uint8)
        for name, codec in codecs.items()
    }
    ids = dict.fromkeys(codecs, 0)
    for row in range(rows):
        mask = corpus.rows.loss_mask[row]
        for name, payload in _payloads(codecs, corpus, row).items():
            whole[name][row, mask] = payload
            rests[name].add(_contexts(corpus, row), payload)
            ids[name] += _distinct(codecs[name], payload)
        print(f"codecs: {row + 1} of {rows} rows", flush=True)
    targets = int(corpus.rows.loss_mask[:rows].sum())
    folder.mkdir(parents=True, exist_ok=True)
    for name, codec in codecs.items():
        rest = rests[name].bytes_per_position() + (share if packable(codec) else 0)
        figures = np.array([codec.bytes_per_position, rest, ids[name] / targets])
        part = folder / f"{name}.part.npz"
        np.savez(part, payload=whole[name], figures=figures)
        part.rename(_path(folder, name))


def _payloads(codecs: Mapping[Any, Codec], corpus: Corpus, row: int) -> dict[Any, np.ndarray]:
    """The targets of a row through each codec, [P, bytes] uint8."""
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
    """How many ids with some probability the positions have, an id once a position."""
    found = codec.decode(torch.from_numpy(payload))
    assert isinstance(found, SparseTargets)
    ids = torch.where(found.probs > 0, found.ids, -1).sort(dim=-1).values
    is_new = torch.ones_like(ids, dtype=torch.bool)
    is_new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return int((is_new & (ids >= 0)).sum())


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"


def _load(path: Path) -> Kept:
    with np.load(path) as file:
        decoded, rest, ids = file["figures"].tolist()
        return Kept(file["payload"], decoded, rest, ids)
