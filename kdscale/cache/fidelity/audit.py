"""Audit of a cache: its codec and others of its size, on its sequences, with its teacher.

The teacher is run twice over the same sequences. The first time each family of codecs is tried at a
few sizes, which gives the stored bytes of an id in each; the second time at the largest sizes that
stay within the budget. The recommended codec is the one within the budget whose mean gradient over
many positions is closest to the true one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kdscale.cache.fidelity.codec_families import FAMILIES, distinct, size_of, size_within
from kdscale.cache.fidelity.compare_codecs import Audited, Bench
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.spec import Identity
from kdscale.config.cache import CodecConfig, FullCodec
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import ModelReference, weights_digest
from kdscale.run.finished_run import FinishedRun
from kdscale.store import Store, open_store

SAME_TEACHER = 0.9
"""Share of the ids that two captures of one teacher have in common at the least: on other hardware,
or in another dtype, a few ids of the tail change places."""

_LARGEST_BUDGET = 128.0  # bytes, where the cache's own codec keeps more


@dataclass(frozen=True)
class Audit:
    """The result of an audit; `codecs` rise in stored bytes."""

    cache: str
    teacher: str
    temperature: float
    rows: int
    budget: float  # stored bytes per token
    proof: dict[str, float]  # see `Proof.result`
    own: Audited  # the cache's codec, one of `codecs`
    codecs: list[Audited]
    recommended: Audited | None  # None where nothing fits the budget

    @property
    def agrees(self) -> bool:
        """True if the cache is this teacher's."""
        return self.proof["ids_in_common"] >= SAME_TEACHER

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        fields = {name: value for name, value in vars(self).items() if name != "codecs"}
        recommended = self.recommended.as_dict() if self.recommended else None
        return fields | {
            "own": self.own.as_dict(),
            "codecs": [codec.as_dict() for codec in self.codecs],
            "recommended": recommended,
        }


def audit(
    store: Store,
    *,
    teacher: str | None = None,
    rows: int = 16,
    budget: float | None = None,
    draws: int = 4,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Audit:
    """Audit the cache in `store` on `rows` of its sequences, evenly spread.

    `draws` of each target are compared. budget: stored bytes per token; by default those of the
    cache's codec. teacher: see `find_teacher`. say: called with what is being done; progress: with
    the positions of it that are done, and all. Raises KdscaleError where there is no such cache or
    teacher, or where the sequences have no targets.
    """
    reader = CacheReader(store)
    found = find_teacher(store, reader.identity, teacher)
    bench = Bench(store, reader, found, rows, draws)
    own = _own_config(reader)
    guess = budget or min(_LARGEST_BUDGET, 0.6 * reader.codec.bytes_per_position)
    tried = [f.make(size) for f in FAMILIES for size in f.sizes(guess, bench.vocab_size)]
    say(f"{bench.positions:,} positions: trying codecs of several families and sizes")
    codecs = bench.measure(distinct([own, FullCodec(), *tried]), progress)
    limit = budget or min(_LARGEST_BUDGET, codecs[own].bytes_stored)
    fitted = [config for config in _fitted(limit, codecs) if config not in codecs]
    say(f"comparing codecs of {limit:.1f} stored bytes per token")
    codecs |= bench.measure(fitted, progress) if fitted else {}
    rising = sorted(codecs.values(), key=lambda codec: codec.bytes_stored)
    return Audit(
        cache=str(store),
        teacher=found.source,
        temperature=bench.temperature,
        rows=bench.rows,
        budget=limit,
        proof=bench.proof,
        own=codecs[own],
        codecs=rising,
        recommended=recommend(rising, limit),
    )


def recommend(codecs: Iterable[Audited], budget: float) -> Audited | None:
    """Return the codec within the budget with the least error of the widest mean gradient."""
    within = [codec for codec in codecs if codec.bytes_stored <= budget]
    return min(within, key=lambda codec: codec.fidelity.widest.error, default=None)


def _fitted(budget: float, codecs: Mapping[CodecConfig, Audited]) -> list[CodecConfig]:
    """Return each family's codec of about `budget` bytes, and the next smaller one.

    Two, because the bytes between those measured are an estimate.
    """
    configs = []
    for family in FAMILIES:
        measured = {
            size_of(c): a.bytes_stored for c, a in codecs.items() if a.family == family.name
        }
        size = size_within(budget, measured) if measured else None
        if size is not None:
            configs += [family.make(each) for each in (size, max(family.least, size - 1))]
    return distinct(configs)


def _own_config(reader: CacheReader) -> CodecConfig:
    fields = {k: v for k, v in reader.codec.describe().items() if k != "vocab_size"}
    adapter: TypeAdapter[CodecConfig] = TypeAdapter(CodecConfig)
    return adapter.validate_python(fields)


def find_teacher(cache: Store, identity: Identity, named: str | None) -> ModelReference:
    """Return the model that the cache was captured from.

    named: a folder, a URL or a hub name; by default the teacher of the run that `cache` is part of.
    Raises KdscaleError where there is none, or where it is not the teacher of the cache.
    """
    found = _of_run(cache) if named is None else _named(named, identity)
    if found.digest != identity["teacher"]:
        raise KdscaleError(
            f"The teacher at {found.source} has the digest {found.digest}, the cache was captured "
            f"from {identity['teacher']}.",
            "Give the cache's own teacher: kdscale cache audit URI --teacher FOLDER.",
        )
    return found


def _of_run(cache: Store) -> ModelReference:
    output, lies_in_run, _ = cache.url.rpartition("/cache/")
    found = FinishedRun(open_store(output)).model("teacher") if lies_in_run else None
    if found is None:
        raise KdscaleError(
            f"There is no teacher beside the cache {cache}.",
            "Name it: kdscale cache audit URI --teacher FOLDER (or a hub name).",
        )
    return found


def _named(source: str, identity: Identity) -> ModelReference:
    reference = ModelReference("", source, None, "", 0)
    if not reference.is_hub_name:
        digest = weights_digest(Path(reference.local()))
        return ModelReference("", source, None, digest, 0)
    # A hub's model is known by name and revision: the revision is the cache's.
    revision = str(identity["teacher"]).rpartition("@")[2]
    given = None if revision == "main" else revision
    return ModelReference("", source, given, f"{source}@{revision}", 0)
