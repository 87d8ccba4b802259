"""Real processes that the fault tests start, talk to and kill by their pids.

A start takes milliseconds (tests/forked.py).
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from tests.forked import context

PATIENCE_SECONDS = 120
_AT_ONCE = 4
_INHERITED = ("AWS_", "KDSCALE_")

# A start asks after all processes of the context, and two threads must not read one's end at once.
_one_asks = threading.Lock()


class Worker:
    """A process that runs `work(pipe, *arguments)`.

    It has the AWS_* and KDSCALE_* variables of this process, and `settings` above them.

    Messages that `work` sends through its pipe come out of `hear`, in order.
    """

    def __init__(self, work: Callable[..., Any], *arguments: Any, **settings: str) -> None:
        self._pipe, theirs = context.Pipe()
        inherited = {k: v for k, v in os.environ.items() if k.startswith(_INHERITED)}
        self._process = context.Process(
            target=_run, args=(theirs, inherited | settings, work, arguments), daemon=True
        )
        with _one_asks:
            self._process.start()
        theirs.close()

    def hear(self) -> Any:
        """Return the next message. AssertionError if `work` ended, failed or sent none."""
        kind, value = self._receive()
        assert kind == "says", f"the process {kind} instead: {value}"
        return value

    def tell(self, message: Any) -> None:
        """Send a message, which `work` receives from its pipe."""
        self._pipe.send(message)

    def result(self) -> Any:
        """Return the result of `work` once the process has ended. AssertionError if it failed."""
        kind, value = self._receive()
        assert kind == "returned", f"the process {kind} instead: {value}"
        assert self._join() == 0
        return value

    def failure(self) -> str:
        """Return the traceback with which `work` ended."""
        kind, value = self._receive()
        assert kind == "failed", f"the process {kind} instead: {value}"
        return str(value)

    def end(self) -> tuple[str, Any]:
        """Return how it ended: ("returned", value), ("failed", traceback) or ("died", None)."""
        return self._receive()

    def await_death(self) -> None:
        """Wait for the process to kill itself."""
        kind, value = self._receive()
        assert kind == "died", f"the process {kind} instead: {value}"
        assert self._join() == -signal.SIGKILL

    def kill(self) -> None:
        """Kill -9, and wait for the end."""
        with _one_asks:
            self._process.kill()
        self._join()

    def freeze(self) -> None:
        """Stop it where it stands, as a paused machine would be."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process continue."""
        self._signal(signal.SIGCONT)

    def _join(self) -> int | None:
        """Wait for the end of a process that is at it: its exit code."""
        with _one_asks:
            self._process.join(PATIENCE_SECONDS)
            return self._process.exitcode

    def _signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def _receive(self) -> tuple[str, Any]:
        if not self._pipe.poll(PATIENCE_SECONDS):
            return "hangs", f"nothing heard for {PATIENCE_SECONDS} s"
        try:
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            return "died", None
        return kind, value


def side_by_side(check: Callable[..., None], cases: Iterable[tuple[Any, ...]]) -> None:
    """`check(*case)` of each case, some at a time. ExceptionGroup of all that fail."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        done = [pool.submit(check, *case) for case in cases]
    errors = [error for each in done if (error := each.exception())]
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} of {len(done)} cases", errors)


class Pipe:
    """The process's end of the pipe to its test."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, message: Any) -> None:
        """Let the test hear it."""
        self._connection.send(("says", message))

    def ask(self, message: Any) -> Any:
        """Say it and wait for what the test tells."""
        self.say(message)
        return self._connection.recv()

    def is_told(self) -> bool:
        """Return whether a message of the test waits."""
        return self._connection.poll()


def meeting(count: int) -> Barrier:
    """Return a barrier at which `count` workers wait for each other, again and again."""
    return context.Barrier(count, timeout=PATIENCE_SECONDS)


def kill_me() -> None:
    """Kill -9 of the process that calls it."""
    os.kill(os.getpid(), signal.SIGKILL)


def _run(
    connection: Connection,
    settings: dict[str, str],
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """Run the process from its start to its end."""
    for name in [name for name in os.environ if name.startswith(_INHERITED)]:
        del os.environ[name]
    os.environ.update(settings)
    try:
        answer = ("returned", work(Pipe(connection), *arguments))
    except BaseException:
        answer = ("failed", traceback.format_exc())
    connection.send(answer)
