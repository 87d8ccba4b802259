"""Codecs side by side on the same positions of a cache: their gradients and their sizes.

One pass of the teacher serves any number of codecs. Memory holds one sequence's logits, a chunk's
distributions, and of each codec its payload and a few sums over V.

A chunk is some hundred small tensor operations for each codec. To share out each of them among the
cores costs more than it saves, and where the machine is busy every one waits for the core that
comes last. So the codecs are shared out instead, and each is measured by one thread.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kdscale.cache.codecs import make_codec
from kdscale.cache.commit.plan import open_layout
from kdscale.cache.fidelity.codec_families import family_name
from kdscale.cache.fidelity.gradient import Truth, make_truth
from kdscale.cache.fidelity.measure import CHUNK, Fidelity, Measure
from kdscale.cache.fidelity.positions import Positions, Proof, draw_positions, run_teacher
from kdscale.cache.fidelity.stored_size import StoredSize
from kdscale.cache.format.prior import Prior, count_prior
from kdscale.cache.read.reader import CacheReader
from kdscale.config.cache import CodecConfig
from kdscale.config.training import ZeroConfig
from kdscale.distributed.rank import single_process_rank
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import ModelReference
from kdscale.models.load import check_vocabulary
from kdscale.models.sharded import load_teacher
from kdscale.store import Store

WIDE = 64 * CHUNK
"""Mean gradients are compared over so many positions, or over as many as there are."""

_PRIOR_ROWS = 1024


@dataclass(frozen=True)
class Audited:
    """One codec and its measures; bytes are of a position's payload."""

    config: CodecConfig
    family: str
    bytes_in_memory: int
    bytes_stored: float
    fidelity: Fidelity

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "codec": self.config.model_dump(),
            "family": self.family,
            "bytes_in_memory": self.bytes_in_memory,
            "bytes_stored": self.bytes_stored,
            **asdict(self.fidelity),
        }


class Bench:
    """Some sequences of a cache and their teacher, on a GPU where there is one."""

    def __init__(
        self, store: Store, reader: CacheReader, teacher: ModelReference, rows: int, draws: int
    ) -> None:
        """Load `rows` sequences of the cache, evenly spread, and their teacher.

        draws: of each target that is drawn. Raises KdscaleError where the sequences have no
        targets, or where the teacher does not load.
        """
        identity = reader.identity
        if identity.get("classes"):
            raise KdscaleError(
                "This cache is of a classifier: whole distributions, with no codec to choose.",
                "Look at its targets with `kdscale cache inspect URI --sample 5`.",
            )
        self.vocab_size = int(identity["vocab_size"])
        self.temperature = float(identity["temperature"])
        self._reader = reader
        self._cached = reader.read(_spread(len(reader), rows))
        self.rows = len(self._cached)
        self.positions = int(self._cached.rows.loss_mask.sum())
        if self.positions < 2:
            raise KdscaleError(
                f"The {self.rows} rows looked at have {self.positions} targets together.",
                "Look at more rows: kdscale cache audit URI --rows 64.",
            )
        self._seeds = [int(identity["seed"]) + draw for draw in range(draws)]
        self._prior = _prior(store, reader)
        self._worker = single_process_rank()
        zero = ZeroConfig(stage=0)
        self._model = load_teacher(teacher.local(), self._worker, zero, teacher.revision)
        check_vocabulary(self._model.config, self.vocab_size, "teacher")
        self.proof: dict[str, float] = {}

    def measure(
        self, configs: Sequence[CodecConfig], progress: Callable[[int, int], None]
    ) -> dict[CodecConfig, Audited]:
        """Measure each of `configs` over all positions.

        progress: called with the positions done and those to do.
        """
        benched = [_Benched(config, self._prior, self) for config in configs]
        proof = Proof(self._reader.codec, self._reader.identity)
        streams = max((each.codec.streams for each in benched), default=0)
        rows = run_teacher(self._model, self._cached, self.vocab_size, self._worker.device)
        done = 0
        with _single_threads(self._worker.device) as pool:
            for positions in draw_positions(proof.check(rows), self._seeds, streams):
                logits = positions.logits[:, : self.vocab_size]
                truth = pool.submit(make_truth, logits, self.temperature).result()
                for added in [pool.submit(each.add, truth, positions) for each in benched]:
                    added.result()
                done += len(logits)
                progress(done, self.positions)
        self.proof = proof.result()
        return {each.config: each.result() for each in benched}

    @property
    def widths(self) -> tuple[int, ...]:
        """Over how many positions mean gradients are taken."""
        wide = min(WIDE, self.positions // CHUNK * CHUNK) or self.positions
        return tuple(sorted({min(CHUNK, wide), wide}))


class _Benched:
    """One codec on its way over the positions."""

    def __init__(self, config: CodecConfig, prior: Prior, bench: Bench) -> None:
        self.config = config
        self.codec = make_codec(config, bench.vocab_size)
        self._temperature = bench.temperature
        self._measure = Measure(bench.widths)
        self._rest = StoredSize(self.codec, prior)

    def add(self, truth: Truth, positions: Positions) -> None:
        """Add a chunk: every draw is measured, the first one is stored."""
        streams = self.codec.streams
        drawn = [
            self.codec.encode(
                positions.logits, noise[:, :streams], temperature=self._temperature
            ).payload
            for noise in (positions.noise if streams else positions.noise[:1])
        ]
        self._measure.add(truth, self.codec.decode(torch.stack(drawn)))
        self._rest.add(positions.contexts.cpu().numpy(), drawn[0].cpu().numpy())

    def result(self) -> Audited:
        """Return the measures."""
        return Audited(
            config=self.config,
            family=family_name(self.config),
            bytes_in_memory=self.codec.bytes_per_position,
            bytes_stored=self._rest.bytes_per_position(),
            fidelity=self._measure.result(),
        )


@contextmanager
def _single_threads(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool with a thread for each core that torch uses, in which torch uses one.

    A GPU gets a single thread: it has one queue of work.
    """
    threads = torch.get_num_threads()
    size = threads if device.type == "cpu" else 1
    try:
        with ThreadPoolExecutor(size, "audit", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        # Threads that start later take the number that was set last, in whichever thread.
        torch.set_num_threads(threads)


def _spread(rows: int, count: int) -> np.ndarray:
    """Return `count` of `rows` row numbers, evenly; all where there are fewer."""
    return np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(np.int64))


def _prior(store: Store, reader: CacheReader) -> Prior:
    """Return the prior of the cache's ids.

    Where they are not packed, one is counted from some of its sequences: poorer than the one that a
    capture counts from all of them.
    """
    manifest = reader.manifest
    packing = open_layout(store, manifest.identity, manifest.generations[0]).packing
    if packing is not None:
        return packing.prior
    rows = reader.read(_spread(len(reader), _PRIOR_ROWS)).rows
    return count_prior([(rows.input_ids, rows.loss_mask)], int(reader.identity["vocab_size"]))
