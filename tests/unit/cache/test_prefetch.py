"""Work done ahead: in order, bounded, with errors where they belong."""

import threading
from collections.abc import Iterator

import pytest

from kdscale.cache.prefetch import ordered_map


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

    assert list(ordered_map(work, range(20), threads=4, ahead=4)) == [n * n for n in range(20)]
    assert threads() == []


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_no_more_items_are_taken_than_asked_for(ahead: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    results = ordered_map(lambda item: item, items(), threads=2, ahead=ahead)
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

    results = ordered_map(work, range(9), threads=3, ahead=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert threads() == []


def test_without_threads_the_caller_computes_each_result_when_it_asks() -> None:
    by: list[threading.Thread] = []

    def work(item: int) -> int:
        by.append(threading.current_thread())
        return item

    results = ordered_map(work, range(5), threads=0, ahead=0)
    assert [next(results), next(results)] == [0, 1]
    assert by == [threading.current_thread()] * 2
