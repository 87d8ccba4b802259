"""A submission, worked out before anything contacts the cluster.

A relative path of the config means a folder of the submitter's machine, and the job starts in a
folder of Ray's. So local paths become absolute here, and each one is named in a note, because it
has to be on storage that all nodes share.
"""

import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale.config import RunConfig, dump_config, fingerprint, parse_config
from kdscale.config.places import LocalPlace, resolve_places
from kdscale.errors import KdscaleError
from kdscale.store.redact import redact
from kdscale.submit.environment import read_secrets
from kdscale.submit.log_times import VARIABLE as LOG_TIMES
from kdscale.submit.package import CONFIG_PATH, EXCLUDES, code_root, ignored

GRACE_SECONDS = 600
GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
ENVIRONMENT = {
    # Ray's default gives a stopped job 3 seconds after SIGTERM, but Ray Train only winds down on
    # SIGINT, and a worker has a checkpoint to write.
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    GRACE_VARIABLE: str(GRACE_SECONDS),
    # The log is a file, which Python would otherwise write in blocks: nothing to follow.
    "PYTHONUNBUFFERED": "1",
    LOG_TIMES: "1",
}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class JobPlan:
    """A job as it will be submitted, but for its files and the values of its secrets.

    `places` are the local paths of the config. `given` names the variables that the user set,
    `secrets` those whose values are read from the submitter's environment when the job is
    submitted, `excludes` are patterns of files that stay.
    """

    submission_id: str
    entrypoint: str
    environment: dict[str, str]
    metadata: dict[str, str]
    config_text: str
    places: tuple[LocalPlace, ...]
    output: str = ""
    given: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    @property
    def grace_seconds(self) -> int:
        """Time for a stopped job to write its checkpoint and end."""
        return int(self.environment[GRACE_VARIABLE])

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on paths, for the user."""
        needs = {"node": "each node keeps its own.", "path": "", "hub": "", "text": ""}
        shared = "it has to be on storage that all nodes share."
        return tuple(f"{p.field} is {p.path}: {needs[p.form] or shared}" for p in self.places)

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain data, with the values of the variables in `given` masked."""
        root = code_root()
        shown = {name: "***" if name in self.given else v for name, v in self.environment.items()}
        return {
            "submission_id": self.submission_id,
            "entrypoint": self.entrypoint,
            "env_vars": shown,
            "secrets": list(self.secrets),
            "metadata": self.metadata,
            "working_dir": str(root),
            "excludes": [*EXCLUDES, *self.excludes, *ignored(root)],
            "config": parse_config(self.config_text).model_dump(mode="json"),
        }


def plan_job(
    config: RunConfig,
    *,
    only: str | None = None,
    start: str | None = None,
    until: str | None = None,
    submission_id: str | None = None,
    environment: Mapping[str, str] | None = None,
    secret_names: Sequence[str] = (),
    grace_seconds: int = GRACE_SECONDS,
    excludes: Sequence[str] = (),
    folder: Path | None = None,
) -> JobPlan:
    """Return the job that runs `config`: `only` one stage, or from `start` and up to `until`.

    Relative paths of the config are taken from `folder`, the current one when not given. Raises
    KdscaleError for a malformed id, and for a secret that is not set here.
    """
    if submission_id is None:
        submission_id = f"{config.name}-{secrets.token_hex(4)}"
    check_id(submission_id)
    given = dict(environment or {})
    read_secrets(secret_names, taken=given)
    config, places = resolve_places(config, folder)
    variables = {**ENVIRONMENT, GRACE_VARIABLE: str(grace_seconds), **given}
    entrypoint, text = _entrypoint(only, start, until), dump_config(config)
    return JobPlan(
        submission_id=submission_id,
        entrypoint=entrypoint,
        environment=variables,
        metadata={
            "job_name": config.name,
            "output": redact(config.output),
            # What tells a repeated submission from another one under the same id.
            "digest": fingerprint(entrypoint, text, variables, sorted(secret_names)),
            "secrets": ",".join(secret_names),
            "grace_seconds": variables[GRACE_VARIABLE],
        },
        config_text=text,
        places=tuple(places),
        output=config.output,
        given=tuple(given),
        secrets=tuple(secret_names),
        excludes=tuple(excludes),
    )


def check_id(text: str) -> None:
    """Raise KdscaleError for text that cannot be a job's id."""
    if not _ID.fullmatch(text):
        raise KdscaleError(
            f"{text!r} cannot be a job's id.",
            "Use letters, digits, dots, dashes and underscores, at most 128 of them.",
        )


def _entrypoint(only: str | None, start: str | None, until: str | None) -> str:
    command = ["python", "jobs/run.py", CONFIG_PATH]
    if only is not None:
        command += ["--only", only]
    if start is not None:
        command += ["--from", start]
    if until is not None:
        command += ["--until", until]
    # Ray hands the entrypoint to a shell.
    return shlex.join(command)
