"""Even samples of streams."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdscale.data.rows.pack import empty_rows
from kdscale.data.rows.splits import EvenSample
from kdscale.types import Rows


def numbered(first: int, count: int) -> Rows:
    rows = empty_rows(count, 8, 0)
    rows.input_ids[:] = np.arange(first, first + count)[:, None]
    return rows


def sample(sizes: list[int], wanted: int) -> list[int]:
    even, first = EvenSample(wanted, 8), 0
    for size in sizes:
        even.offer(numbered(first, size))
        first += size
    return even.result().input_ids[:, 0].tolist()


@given(st.lists(st.integers(0, 60), max_size=12), st.integers(1, 20))
def test_a_sample_is_even_and_does_not_depend_on_the_chunks(sizes: list[int], wanted: int) -> None:
    total = sum(sizes)
    found = sample(sizes, wanted)
    assert found == sample([total], wanted)
    assert len(found) == min(wanted, total)
    if total <= wanted:
        assert found == list(range(total))
    # No stretch of the stream is left out: neighbours are at most two mean distances apart.
    edges = [-1, *found, total]
    assert max(np.diff(edges)) <= max(2 * total / max(len(found), 1), 1) + 1


def test_a_sample_by_hand() -> None:
    # 10 rows, 2 wanted: the stride grows to 4 (rows 0, 4, 8), then the middles of two stretches.
    assert sample([10], 2) == [0, 8]
    assert sample([3], 4) == [0, 1, 2]
    assert sample([], 4) == []
