"""Follow a job until it has ended: its log as it grows, its status as the only judge.

Two things run side by side, because either may fail alone. The log comes by a web socket that may
end or fall silent while the job goes on; it is opened again and what was written before is skipped.
The status is asked every few seconds; when it is final, whatever of the log is still missing is
fetched in one piece. A network that is away for a while is waited for.
"""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kdscale.errors import KdscaleError
from kdscale.submit.jobs import job_details, job_log
from kdscale.submit.verdict import UnreachableError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

Write = Callable[[str], None]


def follow(
    client: "JobSubmissionClient",
    job_id: str,
    write: Write,
    *,
    poll_seconds: float = 2.0,
    patience_seconds: float = 120.0,
) -> "JobDetails":
    """Pass the job's log to `write`, each character once, and return the details of the ended job.

    Raises UnknownJobError; UnreachableError when nothing answers for `patience_seconds`. The job
    itself goes on after an error and after Ctrl-C.
    """
    return asyncio.run(_Follower(client, job_id, write, poll_seconds, patience_seconds).run())


class _Follower:
    def __init__(
        self,
        client: "JobSubmissionClient",
        job_id: str,
        write: Write,
        poll_seconds: float,
        patience_seconds: float,
    ) -> None:
        self.client = client
        self.job_id = job_id
        self.write = write
        self.poll_seconds = poll_seconds
        self.patience_seconds = patience_seconds
        self.written = 0  # characters of the log that went to `write`
        self.heard = time.monotonic()  # when the cluster last answered

    async def run(self) -> "JobDetails":
        stream: asyncio.Task[None] | None = None
        try:
            while True:
                details = await self.ask()
                if details is not None and details.status.is_terminal():
                    break
                if stream is None or stream.done():
                    stream = asyncio.create_task(self.stream())
                await asyncio.wait({stream}, timeout=self.poll_seconds)
                if stream.done():
                    # Mostly the job has just ended. Where it has not, do not hammer the server.
                    await asyncio.sleep(min(self.poll_seconds, 0.5))
        finally:
            if stream is not None:
                stream.cancel()
                await asyncio.wait({stream})
        await self.finish()
        return details

    async def finish(self) -> None:
        """Write what the stream had not brought when the job ended."""
        try:
            log = await asyncio.to_thread(job_log, self.client, self.job_id)
        except KdscaleError as error:
            # The node that keeps the log may be gone. The verdict is known and matters more.
            self.write(f"(the end of the log cannot be had: {error.problem})\n")
        else:
            self.write(log[self.written :])

    async def ask(self) -> "JobDetails | None":
        """The job's details; None while the cluster is silent and there is patience left."""
        try:
            details = await asyncio.to_thread(job_details, self.client, self.job_id)
        except UnreachableError:
            if time.monotonic() - self.heard > self.patience_seconds:
                raise
            return None
        self.heard = time.monotonic()
        return details

    async def stream(self) -> None:
        """Write the log from where it was left, until the stream ends or breaks."""
        import aiohttp

        seen = 0
        try:
            # Each stream starts at the log's beginning.
            async for chunk in self.client.tail_job_logs(self.job_id):
                fresh = chunk[max(0, self.written - seen) :]
                seen += len(chunk)
                if fresh:
                    self.written += len(fresh)
                    self.write(fresh)
        except (RuntimeError, OSError, aiohttp.ClientError):
            # The loop above opens it again; the status tells whether there is something to hear.
            return
