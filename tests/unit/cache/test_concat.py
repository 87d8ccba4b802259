"""A mixture has the rows of its caches as often as their weights say, and reads like one cache."""

import multiprocessing
import pickle
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from kdscale.cache.read.concat import ConcatReader, drawn_rows, source_rows
from kdscale.cache.read.loader import read_batches
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows, RowStats
from kdscale.config.cache import TopkCodec, VaroptCodec
from kdscale.errors import KdscaleError
from kdscale.store import open_store
from tests.unit.cache.planted import Planted, make_planted


def plant_cache(folder: Path, rows: int = 23, **identity: object) -> Planted:
    config = identity.pop("config", VaroptCodec(k=4, head=2))
    planted = make_planted(open_store(str(folder)), rows=rows, config=config)
    planted.identity.update(identity)
    return planted.publish()


@pytest.fixture
def caches(tmp_path: Path) -> list[Planted]:
    """Of two teachers and three sizes. Their first tokens are alike, masks and targets are not."""
    return [
        plant_cache(tmp_path / "a", 23),
        plant_cache(tmp_path / "b", 10, teacher="99" * 8),
        plant_cache(tmp_path / "c", 31),
    ]


def readers_of(caches: list[Planted]) -> list[CacheReader]:
    return [CacheReader(planted.store) for planted in caches]


def rows_by_hand(rows: int, weight: float) -> list[int]:
    """Whole copies, then every (rows / rest)th row."""
    whole, rest = divmod(round(rows * weight), rows)
    return list(range(rows)) * whole + [int(n * (rows / rest)) for n in range(rest)]


def assert_same(found: CachedRows, expected: list[CachedRows]) -> None:
    """Row by row, all fields and their types."""
    assert len(found) == len(expected)
    for place, row in enumerate(expected):
        for field in fields(row.rows):
            here, there = getattr(found.rows, field.name), getattr(row.rows, field.name)
            if here is there is None:
                continue
            assert here.dtype == there.dtype, field.name
            assert np.array_equal(here[place], there[0]), field.name
        for name in ("payload", "entropy", "nll"):
            assert np.array_equal(getattr(found, name)[place], getattr(row, name)[0]), name


@pytest.mark.parametrize(
    "weights", [(1, 1, 1), (2, 1, 1), (0.5, 3, 1), (1.5, 0.25, 0.1), (2.75, 1 / 3, 0.04)]
)
def test_an_epoch_has_each_row_as_often_as_its_weight_says(
    caches: list[Planted], weights: tuple[float, ...]
) -> None:
    readers = readers_of(caches)
    mixed = ConcatReader(readers, weights)
    expected = [
        (cache, row)
        for cache, weight in enumerate(weights)
        for row in rows_by_hand(len(readers[cache]), weight)
    ]
    assert len(mixed) == len(expected)
    found = zip(*(part.tolist() for part in mixed.locate(np.arange(len(mixed)))), strict=True)
    assert list(found) == expected
    order = np.random.default_rng(0).integers(0, len(mixed), 40)
    singles = [readers[c].read(np.array([r])) for c, r in (expected[n] for n in order)]
    assert_same(mixed.read(order), singles)


def test_a_part_is_evenly_spread() -> None:
    for rows, weight in ((1000, 0.3), (1000, 1.3), (997, 0.017), (10, 0.9)):
        drawn = drawn_rows(rows, weight)
        part = source_rows(np.arange(drawn), rows, drawn)[drawn - drawn % rows :]
        gaps = np.diff([*part, rows])
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


def test_rows_of_the_largest_caches_are_located_exactly() -> None:
    rows, weight = 3_000_000_007, 1.5
    drawn = drawn_rows(rows, weight)
    places = np.array([0, rows - 1, rows, drawn - 2, drawn - 1])
    rest = drawn - rows
    expected = [0, rows - 1, *((n - rows) * rows // rest for n in (rows, drawn - 2, drawn - 1))]
    assert source_rows(places, rows, drawn).tolist() == expected


def test_batches_are_those_of_read(caches: list[Planted]) -> None:
    mixed = ConcatReader(readers_of(caches), (1, 2, 0.5))
    generator = np.random.default_rng(1)
    orders = [generator.integers(0, len(mixed), 7) for _ in range(9)]
    batches = list(read_batches(mixed, iter(orders), prefetch=2))
    assert len(batches) == 9
    for batch, order in zip(batches, orders, strict=True):
        alone = [mixed.read(order[n : n + 1]) for n in range(7)]
        assert_same(batch, alone)


def test_statistics_are_those_of_the_rows_read(caches: list[Planted]) -> None:
    mixed = ConcatReader(readers_of(caches), (0.5, 2, 1.25))
    found, rows = mixed.statistics, mixed.read(np.arange(len(mixed)))
    assert isinstance(found, RowStats)
    assert np.array_equal(found.sample_ids, rows.rows.sample_ids)
    assert np.array_equal(found.entropy, rows.entropy)
    assert np.array_equal(found.nll, rows.nll)
    assert np.array_equal(found.length, rows.rows.loss_mask.sum(1))


def test_one_cache_of_weight_one_is_that_cache(caches: list[Planted]) -> None:
    (reader,) = readers_of(caches[:1])
    mixed = ConcatReader([reader], [1.0])
    assert len(mixed) == 23
    assert mixed.sequences_per_chunk == reader.sequences_per_chunk == 3
    assert mixed.codec == reader.codec
    assert mixed.identity == reader.identity | {"weights": [1.0]}
    assert_same(mixed.read(np.arange(23)), [reader.read(np.array([n])) for n in range(23)])


def test_no_rows_and_rows_that_are_not_there(caches: list[Planted]) -> None:
    mixed = ConcatReader(readers_of(caches), (1, 1, 1))
    assert len(mixed.read(np.array([], np.int64))) == 0
    assert mixed.read(np.array([], np.int64)).payload.shape == (0, 16, 10)
    for index in (-1, len(mixed)):
        with pytest.raises(IndexError, match=f"rows {index}"):
            mixed.read(np.array([index]))


def test_identity_lists_what_differs(caches: list[Planted]) -> None:
    mixed = ConcatReader(readers_of(caches), (1, 2, 1))
    teacher = "ab" * 8
    assert mixed.identity == caches[0].identity | {
        "teacher": [teacher, "99" * 8, teacher],
        "weights": [1, 2, 1],
    }


def test_metrics_add_up(caches: list[Planted]) -> None:
    readers = readers_of(caches)
    mixed = ConcatReader(readers, (1, 1, 1))
    for _ in read_batches(mixed, [np.arange(len(mixed))] * 2, prefetch=1):
        pass
    expected = sum(reader.metrics["bytes_fetched"] for reader in readers)
    assert mixed.metrics["bytes_fetched"] == expected > 0


def test_it_goes_to_other_processes(caches: list[Planted]) -> None:
    mixed = ConcatReader(readers_of(caches), (1, 2, 0.5))
    order = np.array([40, 3, 22, 58])
    expected = mixed.read(order).payload
    again = pickle.loads(pickle.dumps(mixed))
    assert np.array_equal(again.read(order).payload, expected)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put(mixed.read(order).payload))
    child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0
    assert np.array_equal(results.get(), expected)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"tokenizer": "77" * 8}, f'tokenizer: "{"cd" * 8}", "{"77" * 8}"'),
        ({"temperature": 2.0}, "temperature: 1.0, 2.0"),
        ({"config": TopkCodec(k=4)}, 'codec: {"kind": "varopt"'),
    ],
)
def test_caches_that_one_batch_cannot_mix_are_refused(
    tmp_path: Path, change: dict[str, object], line: str
) -> None:
    caches = [plant_cache(tmp_path / "a"), plant_cache(tmp_path / "b", **change)]
    with pytest.raises(KdscaleError) as caught:
        ConcatReader(readers_of(caches), (1, 1))
    assert line in caught.value.problem
    assert len(caught.value.problem.splitlines()) == 2


def test_a_weight_that_leaves_no_row_is_refused(caches: list[Planted]) -> None:
    with pytest.raises(KdscaleError, match=r"weight of 0\.01 leaves no row of a cache of 10"):
        ConcatReader(readers_of(caches), (1, 0.01, 1))
