"""The set of digests against Python's own."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.data.cleaning.digest_set import DigestSet

# Few values of each half, so that halves repeat and wholes too.
BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40))


@settings(deadline=None)
@given(BATCHES)
def test_the_first_of_each_value_is_new(batches: list[list[tuple[int, int]]]) -> None:
    digests, known = DigestSet(), set[tuple[int, int]]()
    for batch in batches:
        values = np.array(batch, "<u8").reshape(-1, 2)
        expected = []
        for pair in batch:
            expected.append(pair not in known)
            known.add(pair)
        assert digests.add(values.view(np.uint8).reshape(-1, 16)).tolist() == expected


def test_many_digests_take_sixteen_bytes_each() -> None:
    rng, digests = np.random.default_rng(0), DigestSet()
    batches = rng.integers(0, 256, (200, 100, 16), np.uint8)
    assert all(digests.add(batch).all() for batch in batches)
    assert not any(digests.add(batch).any() for batch in batches)
    held = sum(half.nbytes for level in digests._levels for half in level)
    assert held == batches.nbytes
    assert len(digests._levels) <= 5
