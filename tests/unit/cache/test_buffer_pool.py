"""Memory is used again when its last view goes, and never before."""

import threading

import numpy as np
import torch

from kdscale.cache.read.reader import BufferPool


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_with_its_last_view() -> None:
    memory = BufferPool(1000, most=2)
    taken = memory.take(600)
    place = address(taken)
    rows = taken.view(np.dtype([("a", "u1", (3,)), ("b", "u1")]))["a"][5:9]
    rows[:] = 7
    del taken
    assert address(memory.take(10)) != place
    tensor = torch.from_numpy(rows)
    del rows
    other = memory.take(900)
    assert address(other) != place
    other[:] = 0
    assert (tensor == 7).all()
    del tensor
    assert address(memory.take(1000)) == place


def test_sizes_are_as_asked_for_and_larger_ones_are_not_kept() -> None:
    memory = BufferPool(1000, most=2)
    for size in (0, 1, 999, 1000, 1001, 5000):
        taken = memory.take(size)
        assert taken.shape == (size,)
        assert taken.dtype == np.uint8
        taken[:] = 1
    large = memory.take(5000)
    place = address(large)
    del large
    assert address(memory.take(1000)) != place


def test_only_so_much_is_kept() -> None:
    memory = BufferPool(100, most=2)
    places = {address(taken) for taken in [memory.take(100) for _ in range(5)]}
    again = [memory.take(100) for _ in range(3)]
    assert len(places & {address(taken) for taken in again[:2]}) == 2


def test_threads_never_share_memory() -> None:
    memory = BufferPool(4096, most=3)
    wrong: list[int] = []

    def use(number: int) -> None:
        for _ in range(300):
            taken = memory.take(4096)
            taken[:] = number
            if not (taken[::64] == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
