"""Opening of stores by URL or path."""

import difflib
import os
import re

from fsspec import available_protocols

from kdscale.errors import KdscaleError
from kdscale.store.connection import Connection
from kdscale.store.local import LocalStore
from kdscale.store.redact import redact
from kdscale.store.remote import RemoteStore
from kdscale.store.store import Store

# Their URLs begin with the name of a bucket or container.
_WITH_BUCKET = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
_REMOTE = {*_WITH_BUCKET, "http", "https", "ftp", "sftp", "ssh", "hdfs", "webhdfs", "smb", "hf"}
# Without its colon or one of its slashes: "s3:/bucket", "s3:bucket", "s3//bucket".
_SLIP = re.compile(r"(\w+)(?::/?(?!/)|//+)(.*)")


def open_store(url: str) -> Store:
    """Return the store at a local path or fsspec URL. Opens no connection: `Store.check` does.

    Relative paths are made absolute at once, because workers run in other folders. KdscaleError
    for an empty URL, an unknown protocol, or a path that looks like a mistyped URL.
    """
    protocol, separator, rest = url.partition("://")
    if not separator or protocol in ("file", "local"):
        path = rest if separator else url
        if not path.strip():
            raise KdscaleError(f"The store {url!r} names no place.", "Give a path or a URL.")
        if not separator:
            _refuse_slip(url)
        return LocalStore(os.path.abspath(os.path.expanduser(path)))
    if protocol not in available_protocols():
        meant = _meant(protocol)
        raise KdscaleError(
            f"The store {redact(url)} has the unknown protocol {protocol!r}.",
            f"Write {meant}://{redact(rest)} if that is meant."
            if meant
            else "Give a local path or a URL that fsspec reaches, such as s3://bucket/prefix.",
        )
    if not rest.strip("/") or (protocol in _WITH_BUCKET and rest.startswith("/")):
        raise KdscaleError(
            f"The store {redact(url)!r} names no "
            + ("bucket." if protocol in _WITH_BUCKET else "place."),
            f"Write {protocol}://{redact(rest.strip('/')) or 'bucket/prefix'}.",
        )
    trimmed = url.rstrip("/")
    return RemoteStore(trimmed, Connection(trimmed))


def file_at(path: str) -> tuple[Store, str]:
    """Return the store and the key of a file at a path or URL. KdscaleError as of `open_store`."""
    folder, slash, name = path.rpartition("/")
    if folder.endswith(":/") or not name:
        raise KdscaleError(f"{redact(path)!r} names no file.", "Give the path or URL of a file.")
    return open_store(folder or slash or "."), name


def _refuse_slip(path: str) -> None:
    """KdscaleError for what was meant as a URL: it would be a folder here, full of surprises."""
    found = _SLIP.fullmatch(path)
    if found is not None and found[1].lower() in _REMOTE:
        url = redact(f"{found[1].lower()}://{found[2]}")
        rest = url.partition("://")[2]
        shown = path.removesuffix(found[2]) + rest
        raise KdscaleError(
            f"{shown!r} is no URL, and as a path it would be a folder of this machine.",
            f"Write {url}, or for such a folder ./{shown}.",
        )


def _meant(protocol: str) -> str | None:
    """Return the protocol that was probably meant, if any is close."""
    near = difflib.get_close_matches(protocol.strip().lower(), sorted(_REMOTE), 1, 0.5)
    return near[0] if near else None
