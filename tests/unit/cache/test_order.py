"""An epoch's order meets every row once, every chunk in one window, and needs no table."""

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdscale.cache.read.order import EpochOrder
from kdscale.utils import permutation as shuffle


def epoch(order: EpochOrder, number: int = 0) -> np.ndarray:
    return order.rows_at(np.arange(order.rows) + number * order.rows)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 200),
    chunk_rows=st.integers(1, 70),
    window_chunks=st.none() | st.integers(1, 12),
    seed=st.integers(0, 2**64 - 1),
    number=st.integers(0, 5),
)
@example(rows=1, chunk_rows=1, window_chunks=1, seed=0, number=0)
@example(rows=65, chunk_rows=64, window_chunks=1, seed=0, number=0)
@example(rows=64, chunk_rows=64, window_chunks=None, seed=0, number=1)
@example(rows=3, chunk_rows=64, window_chunks=9, seed=0, number=0)
def test_every_row_stands_at_one_position_of_every_epoch(
    rows: int, chunk_rows: int, window_chunks: int | None, seed: int, number: int
) -> None:
    order = EpochOrder(rows, seed, chunk_rows, window_chunks)
    assert sorted(epoch(order, number)) == list(range(rows))


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 200),
    chunk_rows=st.integers(1, 40),
    window_chunks=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_chunks_are_read_in_windows_one_after_the_other(
    rows: int, chunk_rows: int, window_chunks: int, seed: int
) -> None:
    """The chunks of a window are finished before the next window starts.

    There are never more than `window_chunks` of them, as a naive walk over the epoch sees.
    """
    chunks = epoch(EpochOrder(rows, seed, chunk_rows, window_chunks)) // chunk_rows
    left = np.bincount(chunks)
    opened: set[int] = set()
    closed = 0
    for chunk in chunks.tolist():
        if chunk not in opened:
            opened.add(chunk)
            # A window starts only when nothing of the one before is left.
            assert len(opened) <= closed // window_chunks * window_chunks + window_chunks
        left[chunk] -= 1
        closed += left[chunk] == 0
    assert closed == len(left) == -(-rows // chunk_rows)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 60),
    chunk_rows=st.integers(1, 20),
    window_chunks=st.none() | st.integers(1, 4),
    positions=st.lists(st.integers(0, 400), max_size=30),
)
def test_any_positions_give_what_the_whole_stream_has_there(
    rows: int, chunk_rows: int, window_chunks: int | None, positions: list[int]
) -> None:
    order = EpochOrder(rows, 7, chunk_rows, window_chunks)
    stream = order.rows_at(np.arange(401))
    found = order.rows_at(np.array(positions, dtype=np.int64))
    assert found.dtype == np.int64
    assert found.tolist() == stream[positions].tolist()


@pytest.mark.parametrize("window_chunks", [1, 4, None])
def test_epochs_and_seeds_differ(window_chunks: int | None) -> None:
    orders = [EpochOrder(1000, seed, 16, window_chunks) for seed in range(3)]
    epochs = [epoch(order, number) for order in orders for number in range(3)]
    for one, other in itertools.combinations(epochs, 2):
        assert not np.array_equal(one, other)
        # Equal places of two independent orders of 1,000: Poisson with mean 1.
        assert (one == other).sum() < 10


def test_the_same_order_on_every_machine() -> None:
    """A cache's runs must resume after an upgrade: whoever changes these raises shuffle.VERSION."""
    assert shuffle.VERSION == 2
    few = EpochOrder(23, 5, 4, 2).rows_at(np.arange(20, 30))
    assert few.tolist() == [5, 7, 6, 14, 15, 12, 1, 0, 3, 2]
    many = EpochOrder(5000, 5, 1, None).rows_at(np.arange(4997, 5003))
    assert many.tolist() == [1594, 2686, 105, 2549, 4492, 2511]


@pytest.mark.parametrize(("chunk_rows", "window_chunks"), [(1, None), (16, None), (16, 256)])
def test_the_whole_epoch_looks_shuffled(chunk_rows: int, window_chunks: int | None) -> None:
    """Bounds of five standard deviations: 1 / sqrt(n) for a correlation."""
    n = 4096
    found = epoch(EpochOrder(n, 11, chunk_rows, window_chunks))
    bound = 5 / np.sqrt(n)
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < bound
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < bound
    # Neighbours that stay neighbours: each happens with probability 2 / n.
    assert (np.abs(np.diff(found)) == 1).sum() < 12


def test_where_a_row_goes_is_uniform_over_epochs() -> None:
    """Chi-square at 99.99 % over 8 equal parts of the epoch and over the 4 windows.

    The parts are for rows of full chunks (below 29.9); the windows, which start at 0, 10, 20,
    30 up to the short one, for its row 36 (below 21.1).
    """
    order = EpochOrder(37, 3, 5, 2)
    places = np.stack([np.argsort(epoch(order, number)) for number in range(1600)])
    parts = np.arange(37) * 8 // 37
    for row in (0, 17):
        assert chi_square(parts[places[:, row]], 1600 * np.bincount(parts) / 37) < 29.9
    assert chi_square(places[:, 36] // 10, np.full(4, 400.0)) < 21.1


def chi_square(found: np.ndarray, expected: np.ndarray) -> float:
    counts = np.bincount(found, minlength=len(expected))
    return float(((counts - expected) ** 2 / expected).sum())


def test_rows_of_a_window_are_mixed() -> None:
    """Inside a window of 8 chunks of 64, a row is followed by one of its own chunk 1 time in 8."""
    found = epoch(EpochOrder(64 * 64, 2, 64, 8))
    same = (found[:-1] // 64 == found[1:] // 64).mean()
    # A standard deviation is sqrt(1/8 * 7/8 / 4096) = 0.005.
    assert same == pytest.approx(1 / 8, abs=0.026)


def test_a_trillion_tokens_need_no_table() -> None:
    rows = 10**12 // 4096 + 1
    order = EpochOrder(rows, 1, 64, 256)
    positions = np.arange(rows - 500, rows + 500)
    tracemalloc.start()
    found = order.rows_at(positions)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    # The end of one epoch and the start of the next: no row twice in either.
    assert len(set(found[:500].tolist())) == len(set(found[500:].tolist())) == 500
    assert 0 <= found.min() <= found.max() < rows
    # 500 rows of one epoch's end lie within one or two windows of 256 chunks.
    assert len(np.unique(found[:500] // 64)) <= 512


def test_the_work_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted as elements encrypted, which is all that could grow.

    A permutation covers at most four times its range, so each of the two a position goes
    through takes four passes on average.
    """
    encrypted: list[int] = []
    encrypt = shuffle._encrypt

    def counted(values: np.ndarray, *rest: Any) -> np.ndarray:
        encrypted.append(len(values))
        return encrypt(values, *rest)

    monkeypatch.setattr(shuffle, "_encrypt", counted)
    for rows in (10**5, 10**8, 10**12):
        encrypted.clear()
        EpochOrder(rows, 1, 64, 100).rows_at(np.arange(1000))
        # Eight passes, and five standard deviations (12 a position pair) above.
        assert sum(encrypted) < 1000 * 8 + 5 * np.sqrt(1000 * 2 * 12)
