"""A job's secrets on their way: in two parts, neither of which says anything without the other.

Whatever Ray is told of a job, its dashboard shows to everyone. So the values go past Ray: sealed
under a random key, as one object beside the run's output. The key is a variable of the job. Who
sees the dashboard has no access to the store by that, and who reads the store has no key; the job
has both, its nodes' own credentials opening the store. No file anywhere holds a value.

The job's driver calls `open_secrets` before anything else, and Ray calls it at the start of every
worker process: all find the secrets in their environment. The object is deleted when the job has
ended.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping

from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store
from kdscale.store.redact import NAMES_VARIABLE

HOOK = "kdscale.submit.sealed.open_secrets"
FOLDER = "secrets"
LOCATION_VARIABLE = "KDSCALE_SECRETS"
KEY_VARIABLE = "KDSCALE_SECRETS_KEY"
_STORE_CREDENTIALS = ("AWS_", "GOOGLE_", "AZURE_")
_KEY_BYTES = 32
_TAG_BYTES = 32
_PAD = 256  # the object's size tells the values' length no closer than this


def seal_secrets(values: Mapping[str, str], output: str, job_id: str) -> dict[str, str]:
    """Put the sealed values beside `output`, and return the variables that open them.

    Raises KdscaleError where the store cannot be written from here, or where the secrets are the
    credentials that open it.
    """
    store = open_store(output)
    _refuse_store_credentials(values, store)
    store.check()
    text = json.dumps(dict(values)).encode()
    text += b" " * (-len(text) % _PAD)
    key = secrets.token_bytes(_KEY_BYTES)
    # Of two submissions of one id, the one that is refused must not touch the other's.
    name = f"{job_id}-{secrets.token_hex(8)}"
    _put_private(store.child(FOLDER), name, _tag(text, key) + _crypt(text, key))
    return {LOCATION_VARIABLE: f"{store.url}/{FOLDER}/{name}", KEY_VARIABLE: key.hex()}


def open_secrets() -> None:
    """Put the job's secrets into this process's environment; nothing where there are none.

    Raises KdscaleError where the object is gone, or is another than the key's.
    """
    if LOCATION_VARIABLE not in os.environ:
        return
    store, key = _split(os.environ[LOCATION_VARIABLE])
    try:
        sealed = store.get(key)
    except FileNotFoundError as error:
        raise KdscaleError(
            f"The job's secrets are not at {store}/{key}: the job has ended, or its nodes see "
            "another folder than the submitter did.",
            "Give an output that the submitter and all nodes share, best an object store's URL.",
        ) from error
    opener = bytes.fromhex(os.environ[KEY_VARIABLE])
    text = _crypt(sealed[_TAG_BYTES:], opener)
    if not hmac.compare_digest(sealed[:_TAG_BYTES], _tag(text, opener)):
        raise KdscaleError(
            f"The object {store}/{key} does not hold this job's secrets.",
            "Submit the job again under another id.",
        )
    values = json.loads(text)
    os.environ.update(values)
    os.environ[NAMES_VARIABLE] = ",".join(values)


def discard_secrets(where: str | None = None) -> None:
    """Delete the sealed object at `where`, by default this job's; fine where there is none."""
    where = where or os.environ.get(LOCATION_VARIABLE)
    if where is not None:
        store, key = _split(where)
        store.delete(key)


def _refuse_store_credentials(values: Mapping[str, str], store: Store) -> None:
    if store.local_path() is not None:
        return
    for name in values:
        if name.startswith(_STORE_CREDENTIALS):
            raise KdscaleError(
                f"{name} cannot be a secret of this job: its nodes fetch the secrets from {store}, "
                "and need the store's credentials for that.",
                "Give the nodes a role or credentials of their own, as docs/submit.md says.",
            )


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
    """The run's output and the key in it."""
    output, folder, name = where.rsplit("/", 2)
    return open_store(output), f"{folder}/{name}"


def _crypt(data: bytes, key: bytes) -> bytes:
    """`data` under the key stream that SHAKE-256 makes of `key`, which seals one object only; its
    own inverse."""
    stream = hashlib.shake_256(b"kdscale secrets" + key).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))


def _tag(text: bytes, key: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")
