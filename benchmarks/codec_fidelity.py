"""What each codec's targets do to a student's gradient, byte for byte, beside its rivals'.

    python benchmarks/codec_fidelity.py [--quick] [--logits FOLDER] [--assets FOLDER]

Real logits of SmolLM2-135M-Instruct over BBC articles (codec_logits.py), 16,384 positions, and four
draws of every target that is drawn. Bias, variance and the error of mean gradients are those of
kdscale.cache.fidelity, at its stand-in for a student. Rivals are measured by their documented
formats (codec_peers.py); Random-Sampling KD takes 24 bits an id, as published. Bytes at rest are of
the payload, packed as one block, with a share of the prior.

The last line is one JSON object, also kept in results/codec_fidelity.json. --quick takes 1,024
positions and two draws, and keeps nothing.
"""

import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import Tensor

from kdscale.cache.codecs import make_codec, uniforms
from kdscale.cache.fidelity.codec_families import label
from kdscale.cache.fidelity.gradient import Truth, make_truth
from kdscale.cache.fidelity.measure import CHUNK, Fidelity, Measure
from kdscale.cache.fidelity.stored_size import StoredSize
from kdscale.cache.format.packing import packable
from kdscale.config.cache import CodecConfig, SampleCodec, TopkCodec, VaroptCodec
from kdscale.types import SparseTargets

ROOT = Path(__file__).parents[1]
# Of a script only its own folder is on the path.
sys.path.insert(0, str(ROOT))

from benchmarks.codec_logits import Corpus, load_corpus  # noqa: E402  needs the path above
from benchmarks.codec_peers import (  # noqa: E402  needs the path above
    DistillKit,
    Largest,
    Megatron,
    budget_pick,
    recommended,
)

KEPT = ROOT / "benchmarks" / "results" / "codec_fidelity.json"
LOGITS = Path(tempfile.gettempdir()) / "kdscale-codec-fidelity"
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


@dataclass(frozen=True)
class Arm:
    """One way to keep a distribution, and what it was found to do."""

    name: str
    family: str
    bytes_decoded: float
    bytes_at_rest: float
    bytes_published: float | None  # where its authors count them otherwise than we store them
    fidelity: Fidelity

    @property
    def error(self) -> float:
        """Of the mean gradient over COMPARED positions (or the most there were)."""
        found = [d for d in self.fidelity.directions if d.positions <= COMPARED]
        return found[-1].error

    def line(self) -> str:
        """For a person to read."""
        found = self.fidelity
        errors = "  ".join(f"{d.positions}: {d.error:.4f}" for d in found.directions)
        return (
            f"{self.name:46} {self.bytes_decoded:6.1f} B {self.bytes_at_rest:6.1f} B at rest  "
            f"ids {found.distinct_ids:5.1f}  bias {found.squared_bias:9.6f}  "
            f"variance {found.variance:.5f}  gradient error {errors}"
        )

    def row(self) -> dict[str, Any]:
        """As the JSON object has it."""
        fields = asdict(self)
        fidelity = fields.pop("fidelity")
        directions = {
            f"gradient_{what}_{direction['positions']}": direction[what]
            for direction in fidelity.pop("directions")
            for what in ("error", "cosine")
        }
        return {**fields, **fidelity, **directions}


def main(
    quick: bool = typer.Option(False, help="A few positions, to see that it works."),
    logits: Path = typer.Option(LOGITS, help="Folder for 1.6 GB of logits."),
    assets: Path = typer.Option(ROOT / "assets", help="Folder that assets.py wrote."),
) -> None:
    """Measure all arms and print the figures."""
    started = time.perf_counter()
    widths, draws = (WIDTHS_QUICK, 2) if quick else (WIDTHS, 4)
    corpus = load_corpus(assets, logits, widths[-1])
    arms = measure_arms(corpus, draws, widths)
    for arm in arms:
        print(arm.line())
    found = {
        "benchmark": "codec_fidelity",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("kdscale", "torch", "numpy", "pyarrow")},
        "seconds": round(time.perf_counter() - started),
        "positions": len(corpus),
        "vocab_size": corpus.vocab_size,
        "prior_bytes_a_token": corpus.prior_bytes,
        "rows": [arm.row() for arm in arms],
        "goals": goals(arms),
    }
    if not quick:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


class CodecArm:
    """A codec of kdscale: measured over `draws` of its targets, packed as the first of them."""

    def __init__(self, config: CodecConfig, corpus: Corpus, draws: int, measure: Measure) -> None:
        self._config = config
        self._codec = make_codec(config, corpus.vocab_size)
        self._corpus = corpus
        self._draws = draws if self._codec.streams else 1
        self._measure = measure
        self._rest = StoredSize(self._codec, corpus.prior)

    def add(self, start: int, truth: Truth, logits: Tensor) -> None:
        """The positions from `start` on."""
        codec = self._codec
        drawn = [
            codec.encode(logits, noise(codec.streams, seed, start, len(logits))).payload
            for seed in range(self._draws)
        ]
        self._measure.add(truth, codec.decode(torch.stack(drawn)))
        contexts = self._corpus.contexts[start : start + len(logits)]
        self._rest.add(contexts, drawn[0].numpy())

    def result(self) -> Arm:
        """Measures and sizes."""
        fidelity, kind = self._measure.result(), self._config.kind
        prior = self._corpus.prior_bytes if packable(self._codec) else 0.0
        return Arm(
            name=label(self._config),
            family=kind,
            bytes_decoded=self._codec.bytes_per_position,
            bytes_at_rest=self._rest.bytes_per_position() + prior,
            # 17 bits of id and 7 of count for each distinct id.
            bytes_published=3 * fidelity.distinct_ids if kind == "sample" else None,
            fidelity=fidelity,
        )


class PeerArm:
    """A rival's format; it draws nothing."""

    def __init__(self, name: str, codec: DistillKit | Megatron, measure: Measure) -> None:
        self._name = name
        self._codec = codec
        self._measure = measure
        self._largest: list[Largest] = []

    def add(self, start: int, truth: Truth, logits: Tensor) -> None:
        """The positions from `start` on."""
        self._largest.append(Largest(*logits.log_softmax(-1).topk(self._codec.k, dim=-1)))
        found = self._codec.targets(self._largest[-1])
        ghost = None if found.ghost is None else found.ghost[None]
        self._measure.add(truth, SparseTargets(found.ids[None], found.probs[None], ghost))

    def result(self) -> Arm:
        """Measures and sizes."""
        return Arm(
            name=self._name,
            family=self._name.partition(" ")[0],
            bytes_decoded=self._codec.bytes_per_position,
            bytes_at_rest=self._codec.at_rest(self._largest),
            bytes_published=None,
            fidelity=self._measure.result(),
        )


def make_arms(corpus: Corpus, draws: int, widths: tuple[int, ...]) -> list[CodecArm | PeerArm]:
    """Everything that is compared."""
    configs: list[CodecConfig] = [
        *(VaroptCodec(k=k, head=head) for head, sizes in VAROPT.items() for k in sizes),
        *(SampleCodec(draws=count) for count in SAMPLE),
        *(TopkCodec(k=k, value_bits=bits) for k, bits in TOPK),
    ]
    best, small = recommended(corpus.vocab_size), budget_pick(corpus.vocab_size)
    peers: dict[str, DistillKit | Megatron] = {
        "distillkit recommended, zero": best,
        "distillkit recommended, zero, fit in float32": replace(best, fit=torch.float32),
        "distillkit recommended, symmetric_uniform": replace(best, ghost=True),
        "distillkit budget, zero": small,
        "distillkit budget, symmetric_uniform": replace(small, ghost=True),
        "megatron k=128": Megatron(128),
    }
    return [
        *(CodecArm(config, corpus, draws, Measure(widths)) for config in configs),
        *(PeerArm(name, codec, Measure(widths)) for name, codec in peers.items()),
    ]


def measure_arms(corpus: Corpus, draws: int, widths: tuple[int, ...]) -> list[Arm]:
    """Every arm over all positions; teacher and student are computed once for all of them."""
    arms = make_arms(corpus, draws, widths)
    for start in range(0, len(corpus), CHUNK):
        logits = torch.from_numpy(corpus.logits[start : start + CHUNK].astype("float32"))
        truth = make_truth(logits)
        for arm in arms:
            arm.add(start, truth, logits)
        if start % (16 * CHUNK) == 0:
            print(f"measured {start:,} of {len(corpus):,} positions", flush=True)
    return [arm.result() for arm in arms]


def noise(streams: int, seed: int, start: int, count: int) -> Tensor:
    """[count, streams] uniforms of the positions from `start` on, each a row of its own."""
    numbers = torch.arange(start, start + count).repeat(2, 1).T.contiguous()
    return uniforms(seed, numbers.view(torch.uint8), 1, streams)[:, 0]


def goals(arms: list[Arm]) -> list[dict[str, Any]]:
    """DESIGN.md section 3: what `varopt` takes for what rivals give."""
    varopt = [arm for arm in arms if arm.family == "varopt"]
    shares = [
        tuple(size / rival.bytes_published for size in as_many_ids(varopt, rival))
        for rival in arms
        if rival.name in RIVALS and rival.bytes_published
    ]
    decoded, rest = (max(column) for column in zip(*shares, strict=True))
    distillkit = [arm for arm in arms if arm.name in DISTILLKIT]
    best = min(arm.error for arm in distillkit)
    better = [arm.bytes_at_rest for arm in varopt if arm.error < best]
    smallest = min(better) / distillkit[0].bytes_at_rest if better else None
    return [
        {"name": "bytes_vs_random_sampling", "value": decoded, "goal": "<=0.8"},
        {"name": "bytes_at_rest_vs_random_sampling", "value": rest, "goal": "<=0.5"},
        {"name": "bytes_vs_distillkit", "value": smallest, "goal": f"<={1 / 12:.4f}"},
    ]


def as_many_ids(varopt: list[Arm], rival: Arm) -> tuple[float, float]:
    """Bytes decoded and at rest of `varopt` at the rival's mean number of distinct ids.

    It lies between two codecs: a cache with some rows of each has just as many. Both must have no
    more variance than the rival, and codecs that others beat in both ids and bytes are left out.
    """
    able = [arm for arm in varopt if arm.fidelity.variance <= rival.fidelity.variance]
    front: list[Arm] = []
    for arm in sorted(able, key=lambda arm: (-arm.fidelity.distinct_ids, arm.bytes_decoded)):
        if not front or arm.bytes_decoded < front[-1].bytes_decoded:
            front.append(arm)
    ids = [arm.fidelity.distinct_ids for arm in front[::-1]]
    wanted = rival.fidelity.distinct_ids
    assert ids[0] <= wanted <= ids[-1], "the arms of varopt do not enclose the rival"
    decoded = np.interp(wanted, ids, [arm.bytes_decoded for arm in front[::-1]])
    rest = np.interp(wanted, ids, [arm.bytes_at_rest for arm in front[::-1]])
    return float(decoded), float(rest)


if __name__ == "__main__":
    typer.run(main)
