"""The codecs that an audit compares: families with one size, and the size that fits a budget."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from kdscale.config.cache import (
    CodecConfig,
    FullCodec,
    SampleCodec,
    TopkCodec,
    VaroptCodec,
)

LARGEST = 128
"""Ids or draws of the largest codec that is tried: rivals keep no more either."""


@dataclass(frozen=True)
class Family:
    """Codecs that differ only in how many ids they keep."""

    least: int
    make: Callable[[int], CodecConfig]

    @property
    def name(self) -> str:
        """The name of the family, see `family_name`."""
        return family_name(self.make(self.least))

    def sizes(self, budget: float, vocab_size: int) -> list[int]:
        """Return numbers of ids that take less and more than `budget` stored bytes.

        An id takes from one byte (varopt) to three (topk).
        """
        most = min(LARGEST, vocab_size)
        tried = {round(budget * share) for share in (1 / 4, 1 / 2, 1, 2)}
        return sorted({min(max(size, self.least), most) for size in tried if self.least <= most})


FAMILIES = (
    Family(5, lambda k: VaroptCodec(k=k, head=4)),
    Family(3, lambda k: VaroptCodec(k=k, head=2)),
    Family(9, lambda k: VaroptCodec(k=k, head=8)),
    Family(3, lambda k: VaroptCodec(k=k, head=2, head_bits=16)),
    Family(1, lambda n: SampleCodec(draws=n)),
    Family(1, lambda k: TopkCodec(k=k, value_bits=8)),
    Family(1, lambda k: TopkCodec(k=k, value_bits=16)),
)


def family_name(config: CodecConfig) -> str:
    """Return what a codec shares with smaller and larger ones of its family."""
    if isinstance(config, VaroptCodec):
        return f"varopt, head {config.head} x {config.head_bits} bits"
    if isinstance(config, SampleCodec):
        return "sample" if config.tau == 1 else f"sample, tau {config.tau:g}"
    if isinstance(config, TopkCodec):
        return f"topk, {config.value_bits} bits"
    assert isinstance(config, FullCodec)
    return "full"


def size_of(config: CodecConfig) -> int:
    """Return the ids or draws of a codec that is not `full`."""
    assert not isinstance(config, FullCodec)
    return config.draws if isinstance(config, SampleCodec) else config.k


def size_within(budget: float, measured: Mapping[int, float]) -> int | None:
    """Return the largest size of at most `budget` stored bytes; None below the least.

    By straight lines between the sizes measured ({size: bytes}).
    """
    sizes = np.array(sorted(measured))
    stored = np.array([measured[size] for size in sizes.tolist()])
    if budget < stored[0]:
        return None
    return int(np.interp(budget, stored, sizes))


def label(config: CodecConfig) -> str:
    """Format a codec in a few characters, for tables."""
    fields = config.model_dump().items()
    return " ".join([config.kind, *(f"{name}={v:g}" for name, v in fields if name != "kind")])


def as_yaml(config: CodecConfig) -> str:
    """Format a codec as the line that goes below `cache:`."""
    fields = config.model_dump().items()
    values = (f"{name}: {value:g}" for name, value in fields if name != "kind")
    return f"codec: {{{', '.join([f'kind: {config.kind}', *values])}}}"


def distinct(configs: Iterable[CodecConfig]) -> list[CodecConfig]:
    """Return each codec once, in the order of first appearance."""
    return list(dict.fromkeys(configs))
