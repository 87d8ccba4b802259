"""Follow a job until it has ended: its log as it grows, its status as the only judge.

Two things run side by side, because either may fail alone. The log comes as a stream that may end
or fall silent while the job goes on; it is opened again and what was written before is skipped.
The status is asked every few seconds; when it is final, whatever of the log is still missing is
fetched in one piece. A network that is away for a while is waited for.
"""

import asyncio
import time
from collections.abc import Callable

from kdscale.errors import KdscaleError
from kdscale.submit.backend import Backend
from kdscale.submit.job import Job, UnreachableError, WaitTimeoutError

Write = Callable[[str], None]


def follow(
    backend: Backend,
    job_id: str,
    write: Write | None,
    *,
    skip: int = 0,
    timeout_seconds: float | None = None,
    poll_seconds: float = 2.0,
    patience_seconds: float = 120.0,
) -> Job:
    """Pass the job's log to `write`, but for the first `skip` characters; return the ended job.

    Without `write`, only wait.

    Raises UnknownJobError; WaitTimeoutError when the job has not ended after `timeout_seconds`;
    UnreachableError when nothing answers for `patience_seconds`. The job itself goes on after an
    error and after Ctrl-C.
    """
    follower = _Follower(backend, job_id, write, skip, poll_seconds, patience_seconds)
    if timeout_seconds is not None:
        follower.deadline = time.monotonic() + timeout_seconds
    return asyncio.run(follower.run())


class _Follower:
    def __init__(
        self,
        backend: Backend,
        job_id: str,
        write: Write | None,
        skip: int,
        poll_seconds: float,
        patience_seconds: float,
    ) -> None:
        self.backend = backend
        self.job_id = job_id
        self.write = write
        self.written = skip  # characters of the log that went to `write`
        self.poll_seconds = poll_seconds
        self.patience_seconds = patience_seconds
        self.deadline = float("inf")
        self.began = self.heard = time.monotonic()  # `heard`: when the back end last answered

    async def run(self) -> Job:
        stream: asyncio.Task[None] | None = None
        try:
            while True:
                job = await self.ask()
                if job is not None and job.is_over:
                    break
                self.check_time()
                if self.write is None:
                    await asyncio.sleep(self.pause())
                    continue
                if stream is None or stream.done():
                    stream = asyncio.create_task(self.stream(self.write))
                await asyncio.wait({stream}, timeout=self.pause())
                if stream.done():
                    # Mostly the job has just ended. Where it has not, do not hammer the server.
                    await asyncio.sleep(min(self.pause(), 0.5))
        finally:
            if stream is not None:
                stream.cancel()
                await asyncio.wait({stream})
        if self.write is not None:
            await self.finish(self.write)
        return job

    def pause(self) -> float:
        """Seconds until the next question."""
        return max(0.0, min(self.poll_seconds, self.deadline - time.monotonic()))

    def check_time(self) -> None:
        if time.monotonic() >= self.deadline:
            raise WaitTimeoutError(
                f"The job {self.job_id!r} has not ended after "
                f"{time.monotonic() - self.began:.0f} s.",
                "It goes on. Wait for it again, with a longer --timeout or none.",
            )

    async def finish(self, write: Write) -> None:
        """Write what the stream had not brought when the job ended."""
        try:
            log = await asyncio.to_thread(self.backend.log, self.job_id)
        except KdscaleError as error:
            # The node that keeps the log may be gone. The verdict is known and matters more.
            write(f"(the end of the log cannot be had: {error.problem})\n")
        else:
            write(log[self.written :])

    async def ask(self) -> Job | None:
        """The job; None while the back end is silent and there is patience left."""
        try:
            job = await asyncio.to_thread(self.backend.details, self.job_id)
        except UnreachableError:
            if time.monotonic() - self.heard > self.patience_seconds:
                raise
            return None
        self.heard = time.monotonic()
        return job

    async def stream(self, write: Write) -> None:
        """Write the log from where it was left, until the stream ends."""
        seen = 0
        # Each stream starts at the log's beginning.
        async for chunk in self.backend.tail(self.job_id):
            fresh = chunk[max(0, self.written - seen) :]
            seen += len(chunk)
            if fresh:
                self.written += len(fresh)
                write(fresh)
