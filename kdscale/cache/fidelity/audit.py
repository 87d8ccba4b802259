"""The audit of a cache: its codec and others of its size, on its own rows, with its teacher.

The teacher is run twice over the same rows. The first time each family of codecs is tried at a few
sizes, which says how many bytes at rest an id takes in each; the second time at the largest sizes
that stay within the budget. What is recommended is the codec within the budget whose mean gradient
over many positions is closest to the true one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from kdscale.cache.fidelity.codec_families import FAMILIES, distinct, size_of, size_within
from kdscale.cache.fidelity.compare_codecs import Audited, Bench
from kdscale.cache.fidelity.teacher import find_teacher
from kdscale.cache.read.reader import CacheReader
from kdscale.config.cache import CodecConfig, FullCodec
from kdscale.store import Store

SAME_TEACHER = 0.9
"""Share of the ids that two captures of one teacher have in common at the least: on other hardware,
or in another dtype, a few ids of the tail change places."""

_LARGEST_BUDGET = 128.0  # bytes, where the cache's own codec keeps more


@dataclass(frozen=True)
class Audit:
    """What an audit found. `codecs` rise in bytes at rest."""

    cache: str
    teacher: str
    temperature: float
    rows: int
    budget: float  # bytes at rest a token
    proof: dict[str, float]  # see `Proof.result`
    own: Audited  # the cache's codec, one of `codecs`
    codecs: list[Audited]
    recommended: Audited | None  # None where nothing fits the budget

    @property
    def agrees(self) -> bool:
        """Whether the cache is this teacher's."""
        return self.proof["ids_in_common"] >= SAME_TEACHER

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
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
) -> Audit:
    """Audit the cache in `store` on `rows` of its rows, evenly spread, with `draws` of each target.

    budget: bytes at rest a token; those of the cache's own codec where it is None. teacher: see
    `find_teacher`. say: told what is being done. KdscaleError where there is no such cache or
    teacher, or where the rows have no targets.
    """
    reader = CacheReader(store)
    found = find_teacher(store, reader.identity, teacher)
    bench = Bench(store, reader, found, rows, draws)
    own = _own_config(reader)
    guess = budget or min(_LARGEST_BUDGET, 0.6 * reader.codec.bytes_per_position)
    tried = [f.make(size) for f in FAMILIES for size in f.sizes(guess, bench.vocab_size)]
    say(f"{bench.positions:,} positions: trying codecs of several families and sizes")
    codecs = bench.measure(distinct([own, FullCodec(), *tried]))
    limit = budget or min(_LARGEST_BUDGET, codecs[own].bytes_at_rest)
    fitted = [config for config in _fitted(limit, codecs) if config not in codecs]
    say(f"comparing codecs of {limit:.1f} bytes at rest a token")
    codecs |= bench.measure(fitted) if fitted else {}
    rising = sorted(codecs.values(), key=lambda codec: codec.bytes_at_rest)
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
    """Of the codecs within the budget the one with the least error of the widest mean gradient."""
    within = [codec for codec in codecs if codec.bytes_at_rest <= budget]
    return min(within, key=lambda codec: codec.fidelity.widest.error, default=None)


def _fitted(budget: float, codecs: Mapping[CodecConfig, Audited]) -> list[CodecConfig]:
    """Of each family the codec that should take `budget` bytes, and the next smaller one, because
    the bytes between those measured are an estimate."""
    configs = []
    for family in FAMILIES:
        measured = {
            size_of(c): a.bytes_at_rest for c, a in codecs.items() if a.family == family.name
        }
        size = size_within(budget, measured) if measured else None
        if size is not None:
            configs += [family.make(each) for each in (size, max(family.least, size - 1))]
    return distinct(configs)


def _own_config(reader: CacheReader) -> CodecConfig:
    fields = {k: v for k, v in reader.codec.describe().items() if k != "vocab_size"}
    adapter: TypeAdapter[CodecConfig] = TypeAdapter(CodecConfig)
    return adapter.validate_python(fields)
