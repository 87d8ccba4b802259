"""Duplicates, leaks, the held-out share and the tokenizer's sample."""

import numpy as np
import pytest

from kdscale.data.cleaning.cleaner import Status, name_hash
from kdscale.data.rows.selection import (
    LAST_RANK,
    DedupIndex,
    HashRange,
    filter_documents,
    first_of_each,
    first_sample_rank,
    first_training_rank,
)
from kdscale.errors import KdscaleError
from tests.unit.data.tables import digests, table


def test_the_first_of_equal_digests_stays() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, (200, 2)).astype(np.uint64)
    seen: set[tuple[int, int]] = set()
    expected = []
    for a, b in values.tolist():
        expected.append((a, b) not in seen)
        seen.add((a, b))
    assert first_of_each(values).tolist() == expected
    assert first_of_each(values[:0]).tolist() == []


def test_dropped_documents_are_counted_by_reason() -> None:
    kept, short, bad = Status.KEPT, Status.SHORT, Status.UNDECODABLE
    # Documents left out share the digest of the empty text: they are no duplicates of each other.
    status = np.array([kept, kept, short, kept, bad, short, kept], np.uint8)
    found = table(7, digests=digests(1, 2, 0, 1, 0, 0, 3), status=status)
    selection = filter_documents(found)
    assert selection.kept.tolist() == [True, True, False, False, False, False, True]
    assert selection.counts == {
        "read": 7,
        "undecodable": 1,
        "dropped_short": 2,
        "dropped_duplicate": 1,
        "dropped_near_duplicate": 0,
        "leaked": 0,
        "kept": 3,
    }


def test_an_evaluation_document_that_is_in_training_is_dropped() -> None:
    training = DedupIndex(digests(9, 3, 3, 1), None)
    selection = filter_documents(table(5, digests=digests(1, 2, 2, 3, 3)), training)
    assert selection.kept.tolist() == [False, True, False, False, False]
    counts = selection.counts
    assert (counts["leaked"], counts["dropped_duplicate"], counts["kept"]) == (2, 2, 1)


def test_the_held_out_documents_stay_when_documents_are_added() -> None:
    few = np.array([name_hash(f"doc{n}") for n in range(1000)], np.uint64)
    more = np.array([name_hash(f"doc{n}") for n in range(3000)], np.uint64)
    first_few, first_more = first_training_rank(few, 0.1), first_training_rank(more, 0.1)
    assert first_few == first_more == int(0.1 * 2.0**64)
    share = float((more < np.uint64(first_more)).mean())
    assert 0.08 < share < 0.12


def test_each_side_gets_a_document() -> None:
    low, high = np.array([5, 9, 30], np.uint64), np.array([2**63, 2**64 - 2], np.uint64)
    assert first_training_rank(low, 0.4) == 30
    assert first_training_rank(high, 0.01) == 2**63 + 1
    with pytest.raises(KdscaleError, match="1 documents are left"):
        first_training_rank(low[:1], 0.1)


def test_a_sample_has_the_size_asked_for() -> None:
    ranks = np.array([40, 10, 30, 20], np.uint64)
    assert first_sample_rank(ranks, 3) == 20
    assert first_sample_rank(ranks, 4) == 10
    assert first_sample_rank(ranks, 100) == 10


def test_a_choice_is_a_stretch_of_places() -> None:
    ranks = np.array([0, 10, 20, 30, LAST_RANK], np.uint64)
    labels = np.full(5, -1)

    def bound(*of: int) -> np.ndarray:
        return np.array(of, np.uint64)

    choice = HashRange(bound(10), bound(LAST_RANK))
    assert choice.covers(ranks, labels).tolist() == [False, True, True, True, True]
    low = HashRange(bound(0), bound(20))
    assert low.covers(ranks, labels).tolist() == [True] * 3 + [False] * 2
    # Bounds of their own for what has no class, class 0 and class 1.
    of_class = HashRange(bound(1, 20, 0), bound(0, LAST_RANK, 10))
    classes = np.array([-1, 0, 0, 1, 0])
    assert of_class.covers(ranks, classes).tolist() == [False, False, True, False, True]
