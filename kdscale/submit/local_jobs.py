"""Jobs on this machine, without a cluster: each is a detached process with a folder of its own.

    <state>/kdscale/jobs/<id>/   job.json   what was submitted, but no secret
                                 code/      the files that travel, as on a cluster
                                 log        what the job wrote
                                 lock       held as long as the job's runner lives
                                 stop       somebody asked it to stop; seconds, or empty
                                 result.json  when it started, and how it ended

`<state>` is XDG_STATE_HOME, by default ~/.local/state.
"""

import asyncio
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from kdscale.errors import ExitCode
from kdscale.submit.environment import read_secrets
from kdscale.submit.exit_codes import DuplicateJobError, UnknownJobError
from kdscale.submit.job import Job
from kdscale.submit.job_plan import JobPlan, check_id
from kdscale.submit.local_runner import LOCK, LOG, RESULT, STOP

_JOB = "job.json"
_POLL_SECONDS = 0.2


def jobs_folder() -> Path:
    """Where the jobs of this user are kept."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "kdscale" / "jobs"


class LocalJobs:
    """The jobs of this user on this machine."""

    @property
    def options(self) -> str:
        return " --backend local"

    def render(self, plan: JobPlan) -> dict[str, Any]:
        return plan.summary() | {"folder": str(jobs_folder() / plan.submission_id)}

    def submit(self, plan: JobPlan, folder: Path) -> None:
        secrets = read_secrets(plan.secrets)
        home = jobs_folder() / plan.submission_id
        program, *arguments = shlex.split(plan.entrypoint)
        assert program == "python", plan.entrypoint
        home.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=home.parent))
        shutil.copytree(folder, made / "code")
        _write(made / _JOB, {"submitted": time.time(), "metadata": plan.metadata})
        with (made / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._claim(made, home)
            runner = [sys.executable, "-m", "kdscale.submit.local_runner", str(home)]
            subprocess.Popen(
                [*runner, str(plan.grace_seconds), sys.executable, *arguments],
                cwd=home / "code",
                env={**os.environ, **plan.environment, **secrets, **_import_path(home / "code")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                # The lock is the runner's from here on.
                pass_fds=[lock.fileno()],
            )

    def details(self, job_id: str) -> Job:
        return _read(self._home(job_id))

    def log(self, job_id: str) -> str:
        path = self._home(job_id) / LOG
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        seen = 0
        while True:
            # In this order: what was written before the end is read after it.
            over = self.details(job_id).is_over
            text = self.log(job_id)
            if len(text) > seen:
                yield text[seen:]
                seen = len(text)
            if over:
                return
            await asyncio.sleep(_POLL_SECONDS)

    def list(self) -> list[Job]:
        folder = jobs_folder()
        # Not those that are being made.
        homes = folder.glob("[!.]*") if folder.is_dir() else ()
        return [_read(home) for home in sorted(homes, key=_submitted)]

    def stop(self, job_id: str, grace_seconds: int | None = None) -> bool:
        home = self._home(job_id)
        if _read(home).is_over:
            return False
        temporary = home / f"{STOP}.tmp"
        temporary.write_text("" if grace_seconds is None else str(grace_seconds))
        temporary.replace(home / STOP)
        return True

    def clean(self, job: Job) -> None:
        """Nothing to do: secrets are in no file, and the log is to stay."""

    def _claim(self, made: Path, home: Path) -> None:
        """Give the folder its name: of simultaneous submitters one succeeds."""
        try:
            made.rename(home)
        except OSError as error:
            shutil.rmtree(made)
            if not home.exists():
                raise
            raise DuplicateJobError(
                f"This machine has a job {home.name!r} already.",
                f"Look at it with `kdscale status {home.name}{self.options}`, or choose another "
                "id.",
            ) from error

    def _home(self, job_id: str) -> Path:
        check_id(job_id)
        home = jobs_folder() / job_id
        if not (home / _JOB).exists():
            raise UnknownJobError(
                f"This machine has no job {job_id!r}.",
                "`kdscale list --backend local` shows those it has; jobs of a cluster are found "
                "with --address.",
            )
        return home


def _read(home: Path) -> Job:
    """The job as its folder tells it."""
    # Before the result, which the runner writes while it holds the lock.
    going = _is_locked(home / LOCK)
    metadata = json.loads((home / _JOB).read_text())["metadata"]
    result: dict[str, Any] = {}
    if (home / RESULT).exists():
        result = json.loads((home / RESULT).read_text())
    known = {"id": home.name, "metadata": metadata, "started": result.get("started")}
    if "ended" in result:
        known |= {"ended": result["ended"], "exit_code": result["exit_code"]}
        return _ended(home, known, result["stopped"])
    if going:
        return Job(status="RUNNING" if result else "PENDING", **known)
    return Job(
        status="FAILED",
        reason="its process is gone without a verdict: killed, or the machine was restarted",
        **known,
    )


def _ended(home: Path, known: dict[str, Any], stopped: bool) -> Job:
    code = known["exit_code"]
    if code == 0:
        return Job(status="SUCCEEDED", **known)
    if stopped or code == ExitCode.STOPPED:
        return Job(status="STOPPED", **known)
    reason = f"its process ended with code {code}"
    return Job(status="FAILED", reason=reason, message=_log_end(home), **known)


def _submitted(home: Path) -> float:
    submitted: float = json.loads((home / _JOB).read_text())["submitted"]
    return submitted


def _is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _log_end(home: Path, lines: int = 10) -> str:
    text = (home / LOG).read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def _import_path(code: Path) -> dict[str, str]:
    """The staged package stands before an installed one, as on a cluster."""
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{code}{os.pathsep}{others}" if others else str(code)}


def _write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: others read it at any time."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)
