"""Secrets of a Ray job, which travel in two parts: neither is of use without the other.

Ray shows everything that it knows of a job to all who can open its dashboard. So the values bypass
Ray: encrypted with a random key (Fernet), as an object beside the run's output. The key is a
variable of the job. Access to the dashboard gives no access to the store, and the store holds no
key; the job has both, because its nodes have the store's credentials.

The job's driver calls `open_secrets` first, and Ray calls it at the start of every worker process.
The object is deleted when the job has ended.
"""

import json
import os
import secrets
from collections.abc import Mapping

from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store
from kdscale.store.redact import NAMES_VARIABLE

HOOK = "kdscale.submit.secrets.open_secrets"
FOLDER = "secrets"
LOCATION_VARIABLE = "KDSCALE_SECRETS"
KEY_VARIABLE = "KDSCALE_SECRETS_KEY"
_STORE_CREDENTIALS = ("AWS_", "GOOGLE_", "AZURE_")
_PAD = 256  # the object's size reveals the values' length only in these steps


def seal_secrets(values: Mapping[str, str], output: str, job_id: str) -> dict[str, str]:
    """Put the encrypted values beside `output`, and return the variables that open them.

    Raises KdscaleError where the store cannot be written from here, or where the secrets are the
    credentials that open it.
    """
    from cryptography.fernet import Fernet

    store = open_store(output)
    own = [name for name in values if name.startswith(_STORE_CREDENTIALS)]
    if own and store.local_path() is None:
        raise KdscaleError(
            f"{own[0]} cannot be a secret of this job: its nodes fetch the secrets from {store}, "
            "and need the store's credentials for that.",
            "Give the nodes a role or credentials of their own, as docs/submit.md says.",
        )
    store.check()
    text = json.dumps(dict(values)).encode()
    text += b" " * (-len(text) % _PAD)
    key = Fernet.generate_key()
    # A refused second submission of the same id must not touch the first one's object.
    name = f"{job_id}-{secrets.token_hex(8)}"
    _put_private(store.child(FOLDER), name, Fernet(key).encrypt(text))
    return {LOCATION_VARIABLE: f"{store.url}/{FOLDER}/{name}", KEY_VARIABLE: key.decode()}


def open_secrets() -> None:
    """Put the job's secrets into this process's environment; do nothing where there are none.

    Raises KdscaleError where the object is gone, or was encrypted with another key.
    """
    if LOCATION_VARIABLE not in os.environ:
        return
    from cryptography.fernet import Fernet, InvalidToken

    store, key = _split(os.environ[LOCATION_VARIABLE])
    try:
        sealed = store.get(key)
        values = json.loads(Fernet(os.environ[KEY_VARIABLE]).decrypt(sealed))
    except FileNotFoundError as error:
        raise KdscaleError(
            f"The job's secrets are not at {store}/{key}: the job has ended, or its nodes see "
            "another folder than the submitter did.",
            "Give an output that the submitter and all nodes share, best an object store's URL.",
        ) from error
    except (InvalidToken, ValueError) as error:
        raise KdscaleError(
            f"The object {store}/{key} does not hold this job's secrets.",
            "Submit the job again under another id.",
        ) from error
    os.environ.update(values)
    os.environ[NAMES_VARIABLE] = ",".join(values)


def discard_secrets(where: str | None = None) -> None:
    """Delete the encrypted object at `where`, by default this job's, if there is one."""
    where = where or os.environ.get(LOCATION_VARIABLE)
    if where is not None:
        store, key = _split(where)
        store.delete(key)


def _put_private(store: Store, name: str, data: bytes) -> None:
    """Write the object; in a folder, as a file that only its owner may read."""
    folder = store.local_path()
    if folder is None:
        store.put(name, data)
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def _split(where: str) -> tuple[Store, str]:
    """Return the run's output and the key in it."""
    output, folder, name = where.rsplit("/", 2)
    return open_store(output), f"{folder}/{name}"
