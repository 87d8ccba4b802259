"""Channel between a driver and its workers: jobs one way; progress, lines and heartbeats the other.

One Ray actor beside the driver holds it for all worker groups of a run, because the driver is
blocked in the trainer and its workers may be on other machines. Its process imports no torch, so it
starts in a third of the time.
"""

import time
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from kdscale.workers.hang_detector import HangDetector, HungRank, RankHeartbeat
from kdscale.workers.progress import Failure, StageProgress

FAILURES_KEPT = 20

StopSignal = Literal["", "stop", "resize"]
"""Asks the ranks to save their state and to leave: for good, or to start again in another size."""


@dataclass(frozen=True)
class Assignment:
    """A job of a rank. `number` counts the jobs, `attempt` the groups that began it before."""

    number: int
    attempt: int
    job: Any
    stage: str
    run: str


class Channel:
    """State that the driver and the ranks of its worker groups share.

    Ray Train starts a new group after a failure, so several groups may work on one job, one after
    the other.
    """

    def __init__(self) -> None:
        # The present job, and the `fit` of Ray Train whose ranks do it.
        self._fit = ""
        self._number = -1
        self._job: Any = None
        self._names = "", ""
        self._groups: list[str] = []
        self._done: dict[str, set[int]] = {}
        self._is_done = False
        self._error: Exception | None = None
        # Its progress; at what point the present attempt started to count.
        self._progress = StageProgress()
        self._start: tuple[float, int, int] | None = None  # Unix seconds, done, tokens
        self._lines: list[str] = []
        # Its ranks.
        self._detector = HangDetector()
        self._actors: dict[int, Any] = {}
        self._signal: StopSignal = ""

    # Jobs

    def put_job(self, job: Any, stage: str, run: str, fit: str) -> None:
        """Give the ranks of `fit` the next job, whose progress starts from nothing."""
        self._job, self._names = job, (stage, run)
        self._number += 1
        self._groups, self._done, self._is_done, self._error = [], {}, False, None
        self._progress, self._start, self._lines = StageProgress(), None, []
        self._detector, self._signal = HangDetector(), ""
        self.admit(fit)

    def admit(self, fit: str) -> None:
        """Let the ranks of `fit` work on the job, and those of any other end; "" for no ranks."""
        self._fit = fit

    def next_job(self, fit: str, group: str, after: int) -> Assignment | Literal["wait", "end"]:
        """Return the job of a rank of `group` that has done job `after`, -1 if it has done none."""
        # Ray Train restarts a group whatever its error was, though a mistake in a config stays.
        if fit != self._fit or self._error is not None:
            return "end"
        # A new group that comes when all is done has nothing to do, though it has done nothing.
        if after == self._number or self._is_done:
            return "wait"
        if group not in self._groups:
            self._groups.append(group)
        stage, run = self._names
        return Assignment(self._number, self._groups.index(group), self._job, stage, run)

    def mark_done(self, group: str, rank: int, size: int) -> None:
        """Note that a rank of a group of `size` has done the job."""
        done = self._done.setdefault(group, set())
        done.add(rank)
        self._is_done |= len(done) == size

    def fail(self, error: Exception) -> None:
        """Note an error that no restart can repair. The first one counts."""
        self._error = self._error or error

    def poll(self) -> tuple[bool, Exception | None]:
        """Return whether all ranks of a group have done the job, and the error that ends it."""
        return self._is_done, self._error

    def starts(self) -> int:
        """Return how many groups have begun the job."""
        return len(self._groups)

    # Progress

    def update(self, done: int, total: int, tokens: int, note: str) -> None:
        """Report progress. The first report starts the clock, and so does one of other work."""
        now, old = time.time(), self._progress
        # Going back means that the work was resumed from an earlier point. Tokens alone go back
        # if an attempt counts its own: a capture that resumes where all was committed.
        resumed = done < old.done or tokens < old.tokens
        if self._start is None or resumed or note != old.note:
            self._start = now, done, tokens
        started, first_done, first_tokens = self._start
        seconds, gained = now - started, done - first_done
        self._progress = replace(
            old,
            done=done,
            total=total,
            tokens=tokens,
            note=note,
            updated=now,
            tokens_per_second=(tokens - first_tokens) / seconds if seconds > 0 else 0.0,
            seconds_left=seconds / gained * (total - done) if seconds and gained > 0 else None,
        )

    def log_line(self, line: str) -> None:
        """Print a line on the driver's terminal."""
        self._lines.append(line)

    def drain(self) -> tuple[StageProgress, list[str]] | None:
        """Return the progress, and the lines since the last call; None if out of reach."""
        lines, self._lines = self._lines, []
        return self._progress, lines

    # Ranks

    def join(self, heartbeat: RankHeartbeat, actor: Any) -> None:
        """Note that a rank begins, in the process of `actor`."""
        self._actors[heartbeat.rank] = actor
        self._detector.see(heartbeat, time.monotonic())

    def beat(self, heartbeat: RankHeartbeat) -> StopSignal:
        """Take in a rank's heartbeat and return what it is asked for."""
        self._detector.see(heartbeat, time.monotonic())
        return self._signal

    def leave(self, rank: int) -> None:
        """Note that a rank has ended its work on the job."""
        self._detector.leave(rank)

    def present(self) -> int:
        """Return how many ranks are at work."""
        return self._detector.present()

    def hung_ranks(self, seconds: float) -> list[tuple[HungRank, Any]]:
        """Return the ranks that hang, each with its actor; see HangDetector."""
        found = self._detector.hung(seconds, time.monotonic())
        return [(each, self._actors[each.heartbeat.rank]) for each in found]

    def signal(self, signal: StopSignal) -> None:
        """Ask the ranks to stop or to make way for another size. A stop is never taken back."""
        if self._signal != "stop":
            self._signal = signal

    def close_group(self, failure: str = "") -> None:
        """Note that the present group ends, with a failure if one is given.

        Its ranks' late heartbeats count no more, and the next attempt starts the clock again.
        """
        self._detector.close()
        if failure:
            kept = (*self._progress.failures, Failure(time.time(), failure))[-FAILURES_KEPT:]
            self._start = None
            self._progress = replace(
                self._progress,
                tokens_per_second=0.0,
                seconds_left=None,
                failed_groups=self._progress.failed_groups + 1,
                failures=kept,
            )


class _RemoteChannel:
    """A channel in an actor; can be sent to workers. Each call waits for its answer."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        import ray

        if name.startswith("_") or name == "actor":
            raise AttributeError(name)
        method = getattr(self.actor, name)
        return lambda *arguments: ray.get(method.remote(*arguments))

    def update(self, *arguments: Any) -> None:
        """Report progress; nothing waits for it."""
        self.actor.update.remote(*arguments)

    def drain(self) -> Any:
        """Drain the channel. Progress is not worth failing a stage for: its node may be gone."""
        import ray

        try:
            return ray.get(self.actor.drain.remote(), timeout=10)
        except (ray.exceptions.RayError, TimeoutError):
            return None


def start_channel() -> Channel:
    """Start an actor with a channel, on the node of this process, and return its proxy."""
    from kdscale.workers.ray_session import beside_driver

    return cast(Channel, _RemoteChannel(beside_driver(Channel).remote()))
