"""Variables of a job: visible ones, and secrets.

Ray keeps the variables of a job's runtime_env for ever and shows them to everyone who can open the
dashboard. So a variable whose name or value looks like a secret is refused there (`--env`), and a
secret is only ever named on the command line (`--secret NAME`): its value comes from the
submitter's environment, and travels as `secrets.py` says.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdscale.config.text import read_text
from kdscale.errors import KdscaleError
from kdscale.store.redact import redact

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# As a word at the end or before an underscore: TOKENIZERS_PARALLELISM holds no token.
_SECRET = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)(_|$)", re.IGNORECASE
)


def read_environment(
    given: Sequence[str] = (), file: Path | None = None, allow_visible: bool = False
) -> dict[str, str]:
    """Return the variables of the file (`NAME=VALUE` a line), then of `given`, which win.

    Raises KdscaleError for a malformed one, and for one that looks like a secret unless
    `allow_visible`.
    """
    lines = [] if file is None else _lines(file)
    variables = dict(map(_variable, [*lines, *given]))
    visible = [name for name, value in variables.items() if looks_secret(name, value)]
    if visible and not allow_visible:
        names = ", ".join(visible)
        raise KdscaleError(
            f"{names} looks like a secret, and everyone with access to the dashboard would see it.",
            f"Export it and write --secret {visible[0]} instead; --allow-visible-secrets if it is "
            "none.",
        )
    return variables


def read_secrets(names: Sequence[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Return the secrets of these names, with values from this process's environment.

    Raises KdscaleError for one that is not set, malformed, or among the names `taken`.
    """
    values = {}
    for name in names:
        if not _NAME.fullmatch(name):
            # What was given may be a value: it is not shown.
            raise KdscaleError(
                "--secret takes the name of a variable, and was given something else.",
                "Export the variable and write for example --secret HF_TOKEN.",
            )
        if name in taken:
            raise KdscaleError(
                f"{name} is given with --env and with --secret.", "Leave one of them out."
            )
        if not os.environ.get(name):
            raise KdscaleError(
                f"The secret {name} is not set here.",
                f"Export it first: read -rs {name}; export {name}.",
            )
        values[name] = os.environ[name]
    return values


def looks_secret(name: str, value: str) -> bool:
    """Return whether the name is typical of secrets, or the value a URL with a password."""
    return _SECRET.search(name) is not None or redact(value) != value


def _lines(file: Path) -> list[str]:
    text = read_text(file, "file of variables", "Check the path that --env-file gives.")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise KdscaleError(
            f"The variable {name!r} does not have the form NAME=VALUE.",
            "Write for example --env WANDB_MODE=offline.",
        )
    return name, value
