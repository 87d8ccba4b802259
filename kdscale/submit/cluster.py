"""Client of a cluster's job server, with the address that was asked for and the token it needs.

Two defaults of Ray's own client are corrected here. `RAY_API_SERVER_ADDRESS` and `RAY_ADDRESS`
silently override its `address` argument, so that a job can land on the wrong cluster: here the
argument wins. And it sends its token only where `RAY_AUTH_MODE=token` was set before Ray was
imported: wherever a token is found, it is sent.
"""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdscale.config.text import read_text
from kdscale.errors import KdscaleError
from kdscale.submit.job import UnreachableError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# In this order Ray's client looks for an address.
_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def connect(address: str | None) -> "JobSubmissionClient":
    """Return a client of the job server at `address`, after it has answered.

    Raises UnreachableError when nothing answers or the token is refused, KdscaleError when the
    address is malformed.
    """
    url = resolve_address(address)
    token = find_token()
    if token:
        # Where the environment gives a cluster address instead of a URL, Ray's core asks the head
        # for the URL, and it reads the mode once, when it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")

    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        with nullcontext() if address is None else _no_other_address():
            return JobSubmissionClient(url, headers=_headers())
    except AuthenticationError as error:
        raise refused(url) from error
    except (ConnectionError, requests.RequestException, RuntimeError) as error:
        cause = str(error).splitlines()[0]
        if address is None and url == DEFAULT_ADDRESS:
            raise UnreachableError(
                f"No address was given, and no Ray job server answers on this machine, {url}: "
                f"{cause}",
                "Start one here: `ray start --head`, then `kdscale submit CONFIG`. Or give a "
                "cluster's dashboard, --address http://HEAD:8265.",
            ) from error
        raise UnreachableError(
            f"No Ray job server answers at {url}: {cause}",
            "Give the dashboard's address, --address http://HEAD:8265. Through a firewall, forward "
            "the port: `ray dashboard ray_cluster.yaml`, or `ssh -L 8265:localhost:8265 HEAD`.",
        ) from error


def resolve_address(address: str | None) -> str:
    """Return the address given, else the environment's, else this machine's dashboard.

    Raises KdscaleError when the one given is no http(s) URL.
    """
    if address is not None:
        return _normalise(address)
    return environment_address() or DEFAULT_ADDRESS


def environment_address() -> str | None:
    """Return the address in the environment, if there is one."""
    return next(filter(None, map(os.environ.get, _VARIABLES)), None)


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Hide the environment's addresses from Ray's client, which would prefer them."""
    hidden = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def find_token() -> str | None:
    """Return the token that Ray would find; None without one, or with RAY_AUTH_MODE=disabled."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.exists():
        return None
    return read_text(path, "token file", "Make it readable, or set RAY_AUTH_TOKEN.").strip() or None


def check_versions(client: "JobSubmissionClient") -> None:
    """Refuse a cluster whose Ray or Python is of another minor version than this one's.

    A job's code is that of this machine, tried with these versions. Where the cluster does not
    tell its Python, Ray alone decides. Raises KdscaleError.
    """
    import ray

    url = client.get_address()
    there = {"Ray": _ask(url, "/api/version")["ray_version"], "Python": _cluster_python(url)}
    here = {"Ray": ray.__version__, "Python": platform.python_version()}
    for name, version in there.items():
        if version is not None and _minor(version) != _minor(here[name]):
            raise KdscaleError(
                f"The cluster at {url} has {name} {version}, and this machine has "
                f"{name} {here[name]}.",
                f"Submit from an environment with {name} {_minor(version)}, use the image of this "
                "version on the cluster, or take the risk with --allow-version-skew.",
            )


def _cluster_python(url: str) -> str | None:
    """Return the Python in the command lines of the cluster's nodes; None where there is none."""
    nodes = _ask(url, "/nodes?view=summary").get("data", {}).get("summary", [])
    for node in nodes:
        command = " ".join(node.get("raylet", {}).get("cmdline") or node.get("cmdline") or ())
        if found := re.search(r"/python(3\.\d+)/", command):
            return found[1]
    return None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _ask(url: str, path: str) -> Any:
    import requests

    answer = requests.get(url + path, headers=_headers(), timeout=30)
    answer.raise_for_status()
    return answer.json()


def _headers() -> dict[str, str] | None:
    token = find_token()
    return {"Authorization": f"Bearer {token}"} if token else None


def refused(url: str) -> UnreachableError:
    """Return the error for a cluster that asks for another token."""
    return UnreachableError(
        f"The cluster at {url} refuses us: its token is missing here, or another one.",
        "Put the cluster's token (on its head: `ray get-auth-token`) into ~/.ray/auth_token or "
        "RAY_AUTH_TOKEN, and leave RAY_AUTH_MODE unset or `token`.",
    )


def _normalise(address: str) -> str:
    url = address.rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    if not url.startswith(("http://", "https://")):
        raise KdscaleError(
            f"--address {address!r} is not the address of a Ray dashboard.",
            "Give an http or https URL: --address http://HEAD:8265.",
        )
    return url
