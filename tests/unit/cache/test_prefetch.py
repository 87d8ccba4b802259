"""Work done ahead: in order, bounded, with errors where they belong."""

import threading
from collections.abc import Iterator

import pytest

from kdscale.cache.prefetch import in_order


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("cache-ahead")]


def test_results_come_in_the_order_of_the_items() -> None:
    last = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert last.wait(60)
        if item == 3:
            last.set()
        return item * item

    assert list(in_order(work, range(20), threads=4, ahead=4)) == [n * n for n in range(20)]
    assert threads() == []


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_no_more_items_are_taken_than_asked_for(ahead: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    results = in_order(lambda item: item, items(), threads=2, ahead=ahead)
    for number in range(10):
        assert next(results) == number
        assert len(taken) == number + 1 + ahead
    results.close()
    assert threads() == []


def test_an_error_surfaces_at_its_item() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    results = in_order(work, range(9), threads=3, ahead=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert threads() == []


def test_waiting_is_told_result_by_result() -> None:
    waits: list[float] = []
    assert list(in_order(str, range(5), threads=1, ahead=1, waited=waits.append)) == list("01234")
    assert len(waits) == 5
    assert min(waits) >= 0
