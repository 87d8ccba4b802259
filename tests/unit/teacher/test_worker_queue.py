"""The queue and its threads: bounded, complete, and loud about errors."""

import threading

import pytest
import torch

from kdscale.teacher.worker_queue import WorkerQueue
from tests.unit.teacher.patience import PATIENCE_SECONDS, wait_until


@pytest.mark.parametrize("threads", [1, 3])
def test_all_items_are_worked_on_before_the_end_and_one_thread_keeps_their_order(
    threads: int,
) -> None:
    done: list[int] = []
    with WorkerQueue("test", done.append, threads=threads, waiting=2) as queue:
        for item in range(50):
            queue.put(item)
    assert (done if threads == 1 else sorted(done)) == list(range(50))


def test_without_threads_the_caller_does_the_work() -> None:
    threads: list[threading.Thread] = []
    with WorkerQueue(
        "test", lambda _: threads.append(threading.current_thread()), threads=0, waiting=1
    ) as queue:
        queue.put(1)
        assert threads == [threading.current_thread()]
    assert queue.waited == 0
    assert queue.busy > 0


def test_a_full_queue_makes_the_caller_wait() -> None:
    """One item at work and two waiting: the fourth `put` returns when the first is done."""
    gate, started = threading.Semaphore(0), threading.Semaphore(0)
    accepted: list[int] = []

    def work(item: int) -> None:
        started.release()
        assert gate.acquire(timeout=PATIENCE_SECONDS)

    def feed(queue: WorkerQueue[int]) -> None:
        for item in range(4):
            queue.put(item)
            accepted.append(item)

    with WorkerQueue("test", work, threads=1, waiting=2) as queue:
        queue.put(-1)
        assert started.acquire(timeout=PATIENCE_SECONDS)
        feeder = threading.Thread(target=feed, args=(queue,))
        feeder.start()
        wait_until(lambda: len(accepted) == 2)
        # The queue is full, and nothing can empty it: the third stays where it is.
        assert queue._queue.full()
        assert accepted == [0, 1]
        gate.release()
        wait_until(lambda: len(accepted) == 3)
        assert queue.waited > 0
        gate.release(4)
        feeder.join(PATIENCE_SECONDS)
    assert accepted == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_reaches_the_caller_and_nobody_waits_for_ever(threads: int) -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 2:
            raise OSError("no")
        done.append(item)

    def run() -> None:
        with WorkerQueue("test", work, threads=threads, waiting=1) as queue:
            # More than fit: threads that had died would leave this waiting.
            for item in range(200):
                queue.put(item)

    with pytest.raises(OSError, match="no"):
        run()
    assert len(done) < 200


@pytest.mark.parametrize("own", [None, ValueError("mine")])
def test_an_error_in_the_last_item_is_raised_at_the_end_but_for_one_of_the_caller(
    own: Exception | None,
) -> None:
    def run() -> None:
        with WorkerQueue("test", lambda item: [][item], threads=1, waiting=1) as queue:
            queue.put(0)
            if own is not None:
                raise own

    with pytest.raises(ValueError if own else IndexError):
        run()


def test_threads_beside_a_computation_leave_it_its_cores() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[int] = []
    try:
        with WorkerQueue(
            "test", lambda _: seen.append(torch.get_num_threads()), threads=1, waiting=1
        ) as queue:
            queue.put(0)
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
