"""What a submission asks of the cluster, worked out before anything contacts it.

Paths are the trap: a relative path of the config means a folder of the submitter's machine, and the
job starts in a folder of Ray's. So they become absolute here, and each one is named in a note,
because it has to be on storage that all nodes share.
"""

import os
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdscale.config import RunConfig, dump_config, fingerprint, parse_config
from kdscale.errors import KdscaleError
from kdscale.store.redact import redact
from kdscale.submit.environment import read_secrets
from kdscale.submit.log_times import VARIABLE as LOG_TIMES
from kdscale.submit.package import CONFIG_PATH, EXCLUDES, checkout, ignored

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

    `given` names the variables that the user set, `secrets` those whose values are read from the
    submitter's environment when the job is submitted, `excludes` are patterns of files that stay.
    """

    submission_id: str
    entrypoint: str
    environment: dict[str, str]
    metadata: dict[str, str]
    config_text: str
    notes: tuple[str, ...]
    output: str = ""
    given: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    @property
    def grace_seconds(self) -> int:
        """How long a stopped job may take to write its checkpoint and leave."""
        return int(self.environment[GRACE_VARIABLE])

    def summary(self) -> dict[str, Any]:
        """The plan as plain data, with the values of the variables in `given` masked."""
        root = checkout()
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
    """The job that runs `config`, `only` one stage or from stage `start` and up to `until`.

    Relative paths of the config are taken from `folder`, the current one when not given. Raises
    KdscaleError for a malformed id, and for a secret that is not set here.
    """
    if submission_id is None:
        submission_id = f"{config.name}-{secrets.token_hex(4)}"
    check_id(submission_id)
    given = dict(environment or {})
    read_secrets(secret_names, taken=given)
    config, notes = _absolute_paths(config, folder or Path.cwd())
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
        notes=tuple(notes),
        output=config.output,
        given=tuple(given),
        secrets=tuple(secret_names),
        excludes=tuple(excludes),
    )


def check_id(text: str) -> None:
    """Raises KdscaleError for what cannot be a job's id, nor the name of its folder."""
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


def _absolute_paths(config: RunConfig, folder: Path) -> tuple[RunConfig, list[str]]:
    """The config with its relative paths taken from `folder`, and a note for each local path."""
    notes: list[str] = []

    def absolute(field: str, path: str) -> str:
        path = os.path.abspath(folder / Path(path).expanduser())
        notes.append(f"{field} is {path}: it has to be on storage that all nodes share.")
        return path

    tree = config.model_dump(mode="json")
    if _local(config.output):
        tree["output"] = absolute("output", config.output)
    if config.base is not None and _local(config.base):
        tree["base"] = absolute("base", config.base)
    load = config.teacher.load
    if load is not None and _local_folder(load, folder):
        tree["teacher"]["load"] = absolute("teacher.load", load)
    cache = tree["cache"]
    for field in ("reuse", "append_to"):
        if isinstance(cache[field], str) and _local(cache[field]):
            cache[field] = absolute(f"cache.{field}", cache[field])
    for number, source in enumerate(cache["reuse"] if isinstance(cache["reuse"], list) else ()):
        if _local(source["url"]):
            source["url"] = absolute(f"cache.reuse.{number}.url", source["url"])
    for number, step in enumerate((tree["data"]["augment"] or {}).get("steps", ())):
        if step.get("table") is not None and _local(step["table"]):
            field = f"data.augment.steps.{number}.table"
            step["table"] = absolute(field, step["table"])
    chat = config.data.chat
    if chat is not None and chat.template_file is not None and _local(chat.template_file):
        path = absolute("data.chat.template", chat.template_file)
        tree["data"]["chat"]["template"] = path
    for field, source in _sources(tree["data"]):
        path = source["path"]
        if path is None or not _local(path):
            continue
        # The path of a Hugging Face data set is a name on the hub more often than a folder.
        if source["kind"] != "huggingface" or _local_folder(path, folder):
            source["path"] = absolute(f"{field}.path", path)
    return RunConfig.model_validate(tree), notes


def _sources(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    extra = [(f"data.evaluate.{name}", source) for name, source in data["evaluate"].items()]
    train = data["train"]
    if not isinstance(train, list):
        return [("data.train", train), *extra]
    return [*((f"data.train.{number}", each) for number, each in enumerate(train)), *extra]


def _local(path: str) -> bool:
    return "://" not in path


def _local_folder(name: str, folder: Path) -> bool:
    """Whether `name` is a folder here, and not a name on the Hugging Face hub."""
    return _local(name) and (
        name.startswith((".", "/", "~")) or (folder / Path(name).expanduser()).is_dir()
    )
