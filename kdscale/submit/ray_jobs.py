"""Jobs on a Ray cluster: Ray's job API with errors that a person can act on."""

import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kdscale.errors import ExitCode, KdscaleError, last_line
from kdscale.run.stop import request_stop
from kdscale.store import open_store
from kdscale.submit import package, secrets
from kdscale.submit.cluster import check_versions, connect
from kdscale.submit.environment import read_secrets
from kdscale.submit.job import (
    DuplicateJobError,
    Job,
    Status,
    UnknownJobError,
    UnreachableError,
)
from kdscale.submit.job_plan import JobPlan
from kdscale.submit.records import Place

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_AGENT_SECONDS = 120.0
# Of a job that is asked to stop while it starts: until when it is young, how long to wait for its
# process, how often to look, what Ray writes into its log before it makes it, what making it takes.
_YOUNG_SECONDS, _BEGIN_SECONDS, _LOOK_SECONDS = 60.0, 10.0, 0.5
_BEGUN, _MADE_SECONDS = "Running entrypoint for job", 1.0
_SEALED = "sealed"  # in a job's metadata: where its secrets are, until they are deleted


class RayJobs:
    """The job server of the cluster at `address` (None: the environment's, or this machine's)."""

    def __init__(
        self,
        address: str | None = None,
        *,
        upload_to: str | None = None,
        allow_skew: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.address = address
        self.upload_to = upload_to
        self.allow_skew = allow_skew
        self.say = say

    @cached_property
    def client(self) -> "JobSubmissionClient":
        """A client of the job server; connects. Raises UnreachableError."""
        return connect(self.address)

    @property
    def place(self) -> Place:
        """The dashboard's URL: this shell's RAY_ADDRESS need not be that of another."""
        return Place("ray", address=self.client.get_address())

    def render(self, plan: JobPlan) -> dict[str, Any]:
        """Return what a submission would send. Contacts nothing."""
        return plan.summary() | {"upload": self.upload_to or "through Ray"}

    def submit(self, plan: JobPlan, folder: Path) -> None:
        """Start the job on the files staged in `folder`."""
        client = self.client
        if not self.allow_skew:
            check_versions(client)
        with tempfile.TemporaryDirectory(prefix="kdscale-package-") as scratch:
            archive = package.pack(folder, Path(scratch) / "package.zip")
            files = package.publish(archive, self.upload_to, self.say)
            runtime_env: dict[str, Any] = {"working_dir": files, "env_vars": dict(plan.environment)}
            metadata = plan.metadata | self._seal(plan, runtime_env)
            try:
                self._send(plan, runtime_env, metadata)
            except BaseException:
                # An existing job of this id has its own object.
                if _SEALED in metadata:
                    secrets.discard_secrets(metadata[_SEALED])
                raise

    def details(self, job_id: str) -> Job:
        """Return the job as it is now."""
        with self._translated(job_id):
            return _job(self.client.get_job_info(job_id))

    def log(self, job_id: str) -> str:
        """Return the job's log so far."""
        with self._translated(job_id):
            return cast(str, self.client.get_job_logs(job_id))

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """Yield the log from its beginning, as it grows; may end or break."""
        import aiohttp

        try:
            async for chunk in self.client.tail_job_logs(job_id):
                yield chunk
        except (RuntimeError, OSError, aiohttp.ClientError):
            return  # A stream may break; the job's status says whether there is more to hear.

    def list(self) -> list[Job]:
        """Return all jobs that the cluster remembers, oldest first."""
        with self._translated():
            jobs = [_job(job) for job in self.client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.started or 0)

    def stop(self, job_id: str, grace_seconds: int | None = None) -> bool:
        """Ask the job to stop; return whether it was going."""
        if grace_seconds is None:
            with self._translated(job_id):
                self._let_it_begin(job_id)
                return cast(bool, self.client.stop_job(job_id))
        job = self.details(job_id)
        if job.is_over:
            return False
        # Ray's own time to leave is fixed at the submission, so the run is asked itself.
        most = int(job.metadata.get("grace_seconds", 0))
        if grace_seconds > most:
            raise KdscaleError(
                f"The job {job_id} would be killed after {most} s, as its submission said, and "
                f"cannot be given {grace_seconds} s.",
                "Leave out --grace, or submit the next one with a longer --grace.",
            )
        request_stop(open_store(job.metadata["output"]), grace_seconds)
        return True

    def _let_it_begin(self, job_id: str) -> None:
        """Wait while the process of a job that is young is being made, _BEGIN_SECONDS at most.

        A process has its parent's signal handlers until it is its own program, so that an interrupt
        that comes in between is lost (Ray 2.60 sends one): Ray would wait out the job's whole grace
        and then kill it.
        """
        if time.time() - (self.details(job_id).started or 0) > _YOUNG_SECONDS:
            return
        deadline = time.monotonic() + _BEGIN_SECONDS
        while time.monotonic() < deadline and not self.details(job_id).is_over:
            if _BEGUN in self.client.get_job_logs(job_id):
                time.sleep(_MADE_SECONDS)
                return
            time.sleep(_LOOK_SECONDS)

    def clean(self, job: Job) -> None:
        """Delete the secrets of a job that has ended."""
        # A driver that ended by itself has done it; one that was killed has no such code.
        ended_itself = job.exit_code is not None and 0 <= job.exit_code <= 125
        if ended_itself or _SEALED not in job.metadata:
            return
        try:
            secrets.discard_secrets(job.metadata[_SEALED])
        except OSError as error:
            self.say(f"note: the job's sealed secrets could not be deleted from here: {error}")

    def _seal(self, plan: JobPlan, runtime_env: dict[str, Any]) -> dict[str, str]:
        """Send the plan's secrets ahead, and let `runtime_env` open them.

        Returns what the job's metadata records of them.
        """
        if not plan.secrets:
            return {}
        values = read_secrets(plan.secrets)
        keys = secrets.seal_secrets(values, plan.output, plan.submission_id)
        runtime_env["env_vars"] |= keys
        runtime_env["worker_process_setup_hook"] = secrets.HOOK
        return {_SEALED: keys[secrets.LOCATION_VARIABLE]}

    def _send(self, plan: JobPlan, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        deadline = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                with self._translated():
                    self._try(plan, runtime_env, metadata)
            except KdscaleError as error:
                # A head that has just started answers before the agent is up that starts jobs.
                if "No available agent" not in error.problem or time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                return

    def _try(self, plan: JobPlan, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        try:
            self.client.submit_job(
                entrypoint=plan.entrypoint,
                submission_id=plan.submission_id,
                runtime_env=runtime_env,
                metadata=metadata,
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            raise DuplicateJobError(
                f"The cluster has a job {plan.submission_id!r} already.",
                f"Look at it with `kdscale status {plan.submission_id}`, or choose another id.",
            ) from error

    @contextmanager
    def _translated(self, job_id: str | None = None) -> Iterator[None]:
        """Turn exceptions of Ray's client into errors with a fix."""
        import requests

        address = self.client.get_address()
        try:
            yield
        except (ConnectionError, requests.RequestException) as error:
            raise UnreachableError(
                f"The cluster at {address} does not answer: {error}",
                "A job that has started continues; try again when the network is back.",
            ) from error
        except RuntimeError as error:
            if job_id is not None and "status code 404" in str(error):
                raise UnknownJobError(
                    f"The cluster at {address} has no job {job_id!r}.",
                    "`kdscale list` shows the jobs it remembers; check --address too.",
                ) from error
            raise KdscaleError(
                f"The cluster at {address} refused the request: {last_line(error)}",
                "See the head's dashboard.log, or `ray job logs` on the head, for the cause.",
            ) from error


def _job(details: "JobDetails") -> Job:
    status = cast(Status, str(details.status.value))
    if status == "FAILED" and details.driver_exit_code == ExitCode.STOPPED:
        # The run left by itself, as a stop request in its output asked it to.
        status = "STOPPED"
    return Job(
        id=details.submission_id,
        status=status,
        started=_unix(details.start_time),
        ended=_unix(details.end_time),
        exit_code=details.driver_exit_code,
        reason=str(details.error_type or ""),
        message=details.message or "",
        metadata=dict(details.metadata or {}),
    )


def _unix(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
