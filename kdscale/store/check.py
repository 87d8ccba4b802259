"""Whether a store can be used, asked before a job starts rather than an hour into it."""

import uuid
from pathlib import Path

from kdscale.errors import KdscaleError
from kdscale.store.aws import endpoint
from kdscale.store.redact import redact
from kdscale.store.retry import chain, class_names, http_status, is_transient
from kdscale.store.store import Store

_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
}


def check(store: Store) -> None:
    """Write, read and delete a marker. KdscaleError names the URL, the cause and the fix."""
    key = f"kdscale-check-{uuid.uuid4().hex}"
    data = uuid.uuid4().bytes
    try:
        written = store.put_if_absent(key, data)
        found = store.get(key)
        store.delete(key)
    except OSError as error:
        problem, fix = _explain(error, store.local_path())
        raise KdscaleError(f"The store {store} cannot be used: {problem}.", fix) from error
    if not written or found != data:
        raise KdscaleError(
            f"The store {store} does not give back what was written to it.",
            "Use a store with read-after-write consistency.",
        )


def _explain(error: OSError, folder: Path | None) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    root = list(chain(error))[-1]
    cause = redact(str(root)).strip().rstrip(".") or type(root).__name__
    if folder is not None:
        return (
            cause,
            f"Make {folder} writable, on a file system with hard links, or choose another.",
        )
    names = set().union(*(class_names(link) for link in chain(error)))
    where = redact(endpoint() or "the provider's own")
    if names & _NO_CREDENTIALS:
        return (
            f"no credentials were found ({cause})",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or what your provider uses instead).",
        )
    if "FileNotFoundError" in names:
        return f"it does not exist ({cause})", "Create the bucket, or correct its name in the URL."
    if "PermissionError" in names or any(http_status(link) in (401, 403) for link in chain(error)):
        return (
            f"access was denied ({cause})",
            "Correct the credentials, or grant them to read, write, list and delete under the URL.",
        )
    if is_transient(error):
        return (
            f"the endpoint {where} does not answer ({cause})",
            "Check AWS_ENDPOINT_URL (or your provider's setting), the network, and the server.",
        )
    return cause, "Check the URL, and that the protocol allows writing."
