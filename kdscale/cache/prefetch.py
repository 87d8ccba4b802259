"""Work done ahead of the one who asks for it, in order and in bounded number."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    ahead: int,
    waited: Callable[[float], None] | None = None,
) -> Generator[Result, None, None]:
    """`function` of each item, in the items' order, by `threads` threads.

    At most `ahead` items are taken beyond the one whose result is asked for, so memory is theirs,
    however many items come. `waited` is told the seconds that each result kept the caller waiting.
    An error surfaces at the item that it belongs to. Closing the generator ends its threads.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="cache-ahead")
    pending: deque[Future[Result]] = deque()

    def first() -> Result:
        started = time.monotonic()
        try:
            return pending.popleft().result()
        finally:
            if waited is not None:
                waited(time.monotonic() - started)

    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield first()
        while pending:
            yield first()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
