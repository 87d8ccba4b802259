"""Batches read together are the batches asked for, in bounded number, with errors where due."""

from collections.abc import Iterator

import numpy as np
import pytest

from kdscale.cache.read.batches import read_batches
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows
from tests.unit.cache.planted import Plant, assert_same_rows


def orders(count: int, rows: int = 23) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, rows, size) for size in generator.integers(0, 6, count)]


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("ahead", [0, 1, 2, 7, 100])
def test_every_batch_is_the_one_read_by_itself(plant: Plant, threads: int, ahead: int) -> None:
    reader = CacheReader(plant().publish().store)
    wanted = orders(40)
    found = list(
        read_batches(reader.read, iter(wanted), row_bytes=99, threads=threads, ahead=ahead)
    )
    assert len(found) == 40
    for batch, order in zip(found, wanted, strict=True):
        expected = reader.read(order)
        assert_same_rows(batch.rows, expected.rows)
        for name in ("payload", "entropy", "nll"):
            assert np.array_equal(getattr(batch, name), getattr(expected, name))


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("ahead", [0, 1, 5, 40])
def test_no_more_orders_are_taken_than_asked_for(plant: Plant, threads: int, ahead: int) -> None:
    reader = CacheReader(plant().publish().store)
    taken: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            taken.append(len(taken))
            yield np.array([len(taken) % 23])

    batches = read_batches(reader.read, endless(), row_bytes=99, threads=threads, ahead=ahead)
    for number in range(60):
        next(batches)
        assert len(taken) <= number + 1 + ahead
    batches.close()


def test_the_first_read_is_one_batch_and_the_next_ever_more(plant: Plant) -> None:
    reader = CacheReader(plant().publish().store)
    sizes: list[int] = []

    def read(indices: np.ndarray) -> CachedRows:
        sizes.append(len(indices))
        return reader.read(indices)

    wanted = [np.arange(4)] * 31
    assert len(list(read_batches(read, wanted, row_bytes=99, threads=0, ahead=15))) == 31
    assert sizes == [4, 8, 16, 32, 64]


def test_an_error_in_a_group_reaches_its_own_batch_alone(plant: Plant) -> None:
    reader = CacheReader(plant().publish().store)
    sizes: list[int] = []

    def read(indices: np.ndarray) -> CachedRows:
        sizes.append(len(indices))
        if 22 in indices:
            raise ValueError("row 22")
        return reader.read(indices)

    wanted = [np.array([0]), np.array([1]), np.array([2]), np.array([3]), np.array([22])]
    batches = read_batches(read, wanted, row_bytes=99, threads=0, ahead=7)
    assert [int(next(batches).rows.input_ids[0, 0]) for _ in range(4)] == [
        int(reader.read(np.array([row])).rows.input_ids[0, 0]) for row in range(4)
    ]
    with pytest.raises(ValueError, match="row 22"):
        next(batches)
    # One, then two, then what was left together, and again one by one for the error.
    assert sizes == [1, 2, 2, 1, 1]
