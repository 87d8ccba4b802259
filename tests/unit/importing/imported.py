"""An import by its command, and the cache that came of it, held against the source."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from kdscale.cache.maintain.inspect import inspect
from kdscale.cache.maintain.verify import verify
from kdscale.cache.read.reader import CacheReader
from kdscale.cli import main
from kdscale.store import open_store
from kdscale.types import SparseTargets
from tests.unit.importing.sets import Source, V

TEACHER = "somebody/teacher-7b"


def run(*arguments: str) -> int:
    """Run `kdscale cache import`; return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(["cache", *arguments])
    return int(caught.value.code or 0)


@dataclass(frozen=True)
class Imported:
    """A cache that was imported."""

    out: Path

    @property
    def reader(self) -> CacheReader:
        """Its rows."""
        return CacheReader(open_store(str(self.out)))


def import_set(source: Path | str, out: Path, tokenizer: Path, *options: str) -> Imported:
    """Import a set; the cache must verify."""
    arguments = ("--teacher", TEACHER, "--tokenizer", str(tokenizer), *options)
    assert run("import", str(source), str(out), *arguments) == 0
    store = open_store(str(out))
    report = verify(store)
    assert report.bad == []
    assert report.shards == report.shards_of_cache
    assert inspect(store)["codec"]["kind"] == "topk"
    return Imported(out)


@dataclass(frozen=True)
class Position:
    """A target of the cache, and where it is in the source."""

    sequence: int
    token: int  # the token that is predicted
    probs: np.ndarray  # [V]
    ghost: float


def positions(cache: Imported, source: Source) -> list[Position]:
    """Find every target of a cache in its source, by the tokens of its segment."""
    reader = cache.reader
    found = []
    for number in range(len(reader)):
        cached = reader.read(np.array([number]))
        rows = cached.rows
        targets = reader.codec.decode(torch.from_numpy(cached.payload[0]))
        for segment in range(1, int(rows.segment_ids.max()) + 1):
            at = np.flatnonzero(rows.segment_ids[0] == segment)
            assert isinstance(targets, SparseTargets)
            assert targets.ghost is not None
            sequence, offset = _find(source, rows.input_ids[0, at])
            for place in np.flatnonzero(rows.loss_mask[0, at]):
                here = at[place]
                probs = np.zeros(V)
                np.add.at(probs, targets.ids[here].numpy(), targets.probs[here].numpy())
                assert len(set(targets.ids[here].tolist())) == targets.ids.shape[-1]
                ghost = float(targets.ghost[here])
                assert abs(probs.sum() + ghost - 1) < 1e-5
                found.append(Position(sequence, offset + int(place) + 1, probs, ghost))
    return found


def _find(source: Source, tokens: np.ndarray) -> tuple[int, int]:
    for number, whole in enumerate(source.tokens):
        for offset in range(len(whole) - len(tokens) + 1):
            if np.array_equal(whole[offset : offset + len(tokens)], tokens):
                return number, offset
    raise AssertionError(f"the source has no {tokens.tolist()}")


def check_against(
    cache: Imported, source: Source, k: int, *, relative: float = 0.006
) -> list[Position]:
    """Hold every target against the source's own top k; the rest must be the ghost's."""
    found = positions(cache, source)
    for position in found:
        ids, values = source.top(position.sequence, k)
        ids, p = ids[position.token - 1], np.exp(values[position.token - 1])
        assert np.abs(position.probs[ids] - p).max() <= relative * p.max() + 1e-7
        np.testing.assert_allclose(position.probs[ids], p, rtol=relative, atol=1e-6)
        assert abs(position.ghost - (1 - p.sum())) < 2e-3
        others = np.ones(V, bool)
        others[ids] = False
        assert position.probs[others].max() == 0
    return found
