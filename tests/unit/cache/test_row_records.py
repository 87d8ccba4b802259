"""Rows in fixed-width form: the same values, and a row is one copy."""

import numpy as np
import pytest
import torch

from kdscale.cache.format.row_records import empty_records, row_type, view_rows
from kdscale.cache.rows import CachedRows
from tests.unit.cache.made import fixed, make_rows

ROW_FIELDS = ("sample_ids", "input_ids", "segment_ids", "loss_mask", "byte_counts")
OWN_FIELDS = ("payload", "entropy", "nll")


def arrays(chunk: CachedRows) -> list[np.ndarray]:
    own = [getattr(chunk, name) for name in OWN_FIELDS]
    return own + [getattr(chunk.rows, name) for name in ROW_FIELDS]


@pytest.mark.parametrize(("length", "width"), [(1, 1), (16, 7), (33, 28), (512, 20)])
def test_every_value_and_type_is_kept(length: int, width: int) -> None:
    chunk = make_rows(5, length, width)
    own = fixed(chunk)
    for found, expected in zip(arrays(own), arrays(chunk), strict=True):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
        assert np.shares_memory(found, own.records)
        assert found.flags.aligned
        assert torch.equal(torch.from_numpy(found), torch.from_numpy(expected))


def test_a_row_takes_its_bytes_and_up_to_63_more() -> None:
    for length, width in [(1, 1), (16, 7), (512, 28)]:
        plain = 8 + 4 + 4 + 16 + length * (4 + 4 + 1 + width)
        taken = row_type(length, width).itemsize
        assert taken % 64 == 0
        assert plain <= taken < plain + 64


def test_rows_taken_as_records_are_those_of_the_fields() -> None:
    chunk = make_rows(9, 16, 7)
    kind = row_type(16, 7)
    out = empty_records(5, kind)
    to, at = np.array([4, 0, 2, 3, 1]), np.array([8, 8, 0, 3, 5])
    out[to] = fixed(chunk).records[at]
    for found, expected in zip(arrays(view_rows(out, kind)), arrays(chunk), strict=True):
        assert np.array_equal(found[to], expected[at])


def test_equal_rows_have_equal_bytes() -> None:
    """The padding too: a file of them is checked by its digest, and compared by eye."""
    one, other = (fixed(make_rows(3, 16, 7)).records.tobytes() for _ in range(2))
    assert one == other
