"""Fidelity of each codec: what its targets do to a student's gradient, byte for byte.

    python benchmarks/assets.py
    python benchmarks/codec_fidelity.py [--quick] [--assets FOLDER] [--keep FOLDER]

Real logits of SmolLM2-135M-Instruct over 16,384 positions of held-out BBC articles, and four draws
of every target that is drawn. Bias, variance and the error of mean gradients are those of
kdscale.cache.fidelity, at its stand-in for a student. Rivals are measured by their documented
formats (codec_peers.py); Random-Sampling KD takes 24 bits an id, as published. Stored bytes are of
the payload, packed as one chunk, with a share of the prior of the whole corpus.

The last line is one JSON object, also kept in results/codec_fidelity.json. --quick takes 1,024
positions and two draws, and keeps nothing.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.ablation.corpus import Corpus, corpus_prior, load_corpora
from benchmarks.codec_peers import DistillKit, Largest, Megatron, budget_pick, recommended
from benchmarks.common import ASSETS, ROOT, Assets, Keep, Quick, Row, goal, log, report
from kdscale.cache.codecs import make_codec, uniforms
from kdscale.cache.fidelity.codec_families import label
from kdscale.cache.fidelity.gradient import Truth, make_truth
from kdscale.cache.fidelity.measure import CHUNK, Fidelity, Measure
from kdscale.cache.fidelity.stored_size import StoredSize
from kdscale.cache.format.packing import packable
from kdscale.cache.format.prior import Prior
from kdscale.config.cache import CodecConfig, SampleCodec, TopkCodec, VaroptCodec
from kdscale.types import SparseTargets

ROW_LENGTH = 512
COMPARED = 4096  # positions of the mean gradients that the goals speak of
WIDTHS = (64, COMPARED, 4 * COMPARED)
WIDTHS_QUICK = (64, 1024)

# Budgets from 8 to 132 bytes decoded, at 16 bits an id.
VAROPT = {  # head: sizes
    2: (3, 8, 12, 16, 20),
    3: (4, 12),
    4: (6, 8, 11, 12, 13, 16, 20, 21, 24, 32, 48, 64),
    8: (12, 20),
}
SAMPLE = (4, 12, 25, 50, 100)
TOPK = ((3, 8), (6, 8), (12, 8), (25, 8), (42, 8), (12, 16), (32, 16))  # (k, bits of a value)

RIVALS = ("sample draws=25 tau=1", "sample draws=50 tau=1")
# Both ways of its loss to treat the mass left over: `varopt` has to beat the better one.
DISTILLKIT = ("distillkit recommended, zero", "distillkit recommended, symmetric_uniform")


class Positions(NamedTuple):
    """Positions with the teacher's logits, and the prior of the whole corpus."""

    corpus: Corpus
    count: int
    prior: Prior
    prior_bytes: float  # a token of the whole corpus

    def chunks(self) -> Iterator[tuple[int, Tensor, np.ndarray]]:
        """Yield (first position, logits [P, V] float32, contexts [P]), CHUNK positions at once."""
        start = 0
        logits, contexts = torch.empty(0, self.corpus.vocab_size), np.empty(0, np.int32)
        for row in range(len(self.corpus)):
            mask = self.corpus.rows.loss_mask[row]
            logits = torch.cat([logits, self.corpus.logits(row)])
            contexts = np.concatenate([contexts, self.corpus.rows.input_ids[row][mask]])
            while len(contexts) >= CHUNK and start < self.count:
                yield start, logits[:CHUNK], contexts[:CHUNK]
                start += CHUNK
                logits, contexts = logits[CHUNK:], contexts[CHUNK:]


@dataclass(frozen=True)
class Result:
    """Sizes and fidelity of one way to keep a distribution."""

    name: str
    family: str
    bytes_decoded: float
    bytes_at_rest: float
    bytes_published: float | None  # where its authors count them otherwise than we store them
    fidelity: Fidelity

    @property
    def error(self) -> float:
        """Error of the mean gradient over COMPARED positions, or the most there are."""
        found = [d for d in self.fidelity.directions if d.positions <= COMPARED]
        return found[-1].error

    def row(self) -> Row:
        """Return the row of the JSON object."""
        fields = asdict(self)
        fidelity = fields.pop("fidelity")
        directions = {
            f"gradient_{what}_{direction['positions']}": direction[what]
            for direction in fidelity.pop("directions")
            for what in ("error", "cosine")
        }
        return {**fields, **fidelity, **directions}


def main(
    quick: Quick = False,
    assets: Assets = ASSETS,
    keep_in: Keep = ROOT / "runs" / "codec-fidelity",
) -> None:
    """Measure all variants and print the figures."""
    started = time.perf_counter()
    widths, draws = (WIDTHS_QUICK, 2) if quick else (WIDTHS, 4)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if quick else keep_in
        # Some positions of a row are the last of their document and have no target.
        counts = {"heldout": widths[-1] // ROW_LENGTH + 1}
        corpus = load_corpora(assets, folder, ROW_LENGTH, counts)["heldout"]
        positions = Positions(corpus, widths[-1], *corpus_prior(assets, corpus.vocab_size))
        results = measure(positions, draws, widths)
    for result in results:
        log(result)
    report(
        "codec_fidelity",
        [result.row() for result in results],
        goals(results),
        keep=not quick,
        seconds=round(time.perf_counter() - started),
        positions=positions.count,
        vocab_size=corpus.vocab_size,
        prior_bytes_a_token=positions.prior_bytes,
    )


class CodecVariant:
    """A codec of kdscale: measured over `draws` of its targets, packed as the first of them."""

    def __init__(
        self, config: CodecConfig, positions: Positions, draws: int, measure: Measure
    ) -> None:
        self._config = config
        self._codec = make_codec(config, positions.corpus.vocab_size)
        self._prior_bytes = positions.prior_bytes if packable(self._codec) else 0.0
        self._draws = draws if self._codec.streams else 1
        self._measure = measure
        self._rest = StoredSize(self._codec, positions.prior)

    def add(self, start: int, truth: Truth, logits: Tensor, contexts: np.ndarray) -> None:
        """Add the positions from `start` on."""
        codec = self._codec
        drawn = [
            codec.encode(logits, noise(codec.streams, seed, start, len(logits))).payload
            for seed in range(self._draws)
        ]
        self._measure.add(truth, codec.decode(torch.stack(drawn)))
        self._rest.add(contexts, drawn[0].numpy())

    def result(self) -> Result:
        """Return fidelity and sizes."""
        fidelity, kind = self._measure.result(), self._config.kind
        return Result(
            name=label(self._config),
            family=kind,
            bytes_decoded=self._codec.bytes_per_position,
            bytes_at_rest=self._rest.bytes_per_position() + self._prior_bytes,
            # 17 bits of id and 7 of count for each distinct id.
            bytes_published=3 * fidelity.distinct_ids if kind == "sample" else None,
            fidelity=fidelity,
        )


class PeerVariant:
    """A rival's format; it draws nothing."""

    def __init__(self, name: str, codec: DistillKit | Megatron, measure: Measure) -> None:
        self._name = name
        self._codec = codec
        self._measure = measure
        self._largest: list[Largest] = []

    def add(self, start: int, truth: Truth, logits: Tensor, contexts: np.ndarray) -> None:
        """Add the positions from `start` on."""
        self._largest.append(Largest(*logits.log_softmax(-1).topk(self._codec.k, dim=-1)))
        found = self._codec.targets(self._largest[-1])
        ghost = None if found.ghost is None else found.ghost[None]
        self._measure.add(truth, SparseTargets(found.ids[None], found.probs[None], ghost))

    def result(self) -> Result:
        """Return fidelity and sizes."""
        return Result(
            name=self._name,
            family=self._name.partition(" ")[0],
            bytes_decoded=self._codec.bytes_per_position,
            bytes_at_rest=self._codec.at_rest(self._largest),
            bytes_published=None,
            fidelity=self._measure.result(),
        )


def make_variants(
    positions: Positions, draws: int, widths: tuple[int, ...]
) -> list[CodecVariant | PeerVariant]:
    """Return everything that is compared."""
    configs: list[CodecConfig] = [
        *(VaroptCodec(k=k, head=head) for head, sizes in VAROPT.items() for k in sizes),
        *(SampleCodec(draws=count) for count in SAMPLE),
        *(TopkCodec(k=k, value_bits=bits) for k, bits in TOPK),
    ]
    vocab_size = positions.corpus.vocab_size
    best, small = recommended(vocab_size), budget_pick(vocab_size)
    peers: dict[str, DistillKit | Megatron] = {
        "distillkit recommended, zero": best,
        "distillkit recommended, zero, fit in float32": replace(best, fit=torch.float32),
        "distillkit recommended, symmetric_uniform": replace(best, ghost=True),
        "distillkit budget, zero": small,
        "distillkit budget, symmetric_uniform": replace(small, ghost=True),
        "megatron k=128": Megatron(128),
    }
    return [
        *(CodecVariant(config, positions, draws, Measure(widths)) for config in configs),
        *(PeerVariant(name, codec, Measure(widths)) for name, codec in peers.items()),
    ]


def measure(positions: Positions, draws: int, widths: tuple[int, ...]) -> list[Result]:
    """Measure all variants; teacher and student are computed once for all of them."""
    variants = make_variants(positions, draws, widths)
    for start, logits, contexts in positions.chunks():
        truth = make_truth(logits)
        for variant in variants:
            variant.add(start, truth, logits, contexts)
        if start % (16 * CHUNK) == 0:
            log(f"measured {start:,} of {positions.count:,} positions")
    return [variant.result() for variant in variants]


def noise(streams: int, seed: int, start: int, count: int) -> Tensor:
    """Return [count, streams] uniforms of the positions from `start` on, a row each."""
    numbers = torch.arange(start, start + count).repeat(2, 1).T.contiguous()
    return uniforms(seed, numbers.view(torch.uint8), 1, streams)[:, 0]


def goals(results: list[Result]) -> list[Row]:
    """Compare the bytes of `varopt` with those of its rivals at equal quality."""
    varopt = [result for result in results if result.family == "varopt"]
    shares = [
        tuple(size / rival.bytes_published for size in as_many_ids(varopt, rival))
        for rival in results
        if rival.name in RIVALS and rival.bytes_published
    ]
    decoded, rest = (max(column) for column in zip(*shares, strict=True))
    distillkit = [result for result in results if result.name in DISTILLKIT]
    best = min(result.error for result in distillkit)
    better = [result.bytes_at_rest for result in varopt if result.error < best]
    smallest = min(better) / distillkit[0].bytes_at_rest if better else None
    return [
        goal("bytes_vs_random_sampling", decoded, "<=0.8"),
        goal("bytes_at_rest_vs_random_sampling", rest, "<=0.5"),
        goal("bytes_vs_distillkit", smallest, f"<={1 / 12:.4f}"),
    ]


def as_many_ids(varopt: list[Result], rival: Result) -> tuple[float, float]:
    """Return in-memory and stored bytes of `varopt` at the rival's mean number of distinct ids.

    It lies between two codecs: a cache with some rows of each has just as many. Both must have no
    more variance than the rival, and codecs that others beat in both ids and bytes are left out.
    """
    able = [each for each in varopt if each.fidelity.variance <= rival.fidelity.variance]
    front: list[Result] = []
    for each in sorted(able, key=lambda each: (-each.fidelity.distinct_ids, each.bytes_decoded)):
        if not front or each.bytes_decoded < front[-1].bytes_decoded:
            front.append(each)
    front.reverse()
    ids = [each.fidelity.distinct_ids for each in front]
    wanted = rival.fidelity.distinct_ids
    assert ids[0] <= wanted <= ids[-1], "the codecs of varopt do not enclose the rival"
    decoded = np.interp(wanted, ids, [each.bytes_decoded for each in front])
    rest = np.interp(wanted, ids, [each.bytes_at_rest for each in front])
    return float(decoded), float(rest)


if __name__ == "__main__":
    typer.run(main)
