"""From a URL or path to its store."""

import os

from fsspec import available_protocols

from kdscale.errors import KdscaleError
from kdscale.store.connection import Connection
from kdscale.store.local import LocalStore
from kdscale.store.redact import redact
from kdscale.store.remote import RemoteStore
from kdscale.store.store import Store


def open_store(url: str) -> Store:
    """The store at a local path or fsspec URL. Opens no connection: `Store.check` does.

    Relative paths are made absolute at once, because workers run in other folders. KdscaleError for
    an empty URL or an unknown protocol.
    """
    protocol, separator, rest = url.partition("://")
    if not separator or protocol in ("file", "local"):
        path = rest if separator else url
        if not path:
            raise KdscaleError(f"The store {url!r} names no place.", "Give a path or a URL.")
        return LocalStore(os.path.abspath(os.path.expanduser(path)))
    if protocol not in available_protocols():
        raise KdscaleError(
            f"The store {redact(url)} has the unknown protocol {protocol!r}.",
            "Give a local path or a URL that fsspec reaches, such as s3://bucket/prefix.",
        )
    if not rest.strip("/"):
        raise KdscaleError(
            f"The store {url!r} names no place.", f"Write {protocol}://bucket/prefix."
        )
    trimmed = url.rstrip("/")
    return RemoteStore(trimmed, Connection(trimmed))
