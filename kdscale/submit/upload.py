"""The package of a job on its way to a cluster: through Ray, or through an object store.

Ray takes a package over its dashboard, in one request and into its own memory: fine for code, not
for hundreds of megabytes. So the package is measured before anything is sent; large ones are
pointed out with the files that make them large, and those above the limit are refused unless they
may go through an object store, from where each node fetches them.
"""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

from kdscale.errors import KdscaleError
from kdscale.store import open_store

MIB = 2**20
WARN_BYTES = 20 * MIB
# Ray's own limits are 512 MiB for its store and 100 MiB for a request to a dashboard; the smaller
# one decides (ray issue 55877).
LIMIT_BYTES = 100 * MIB
# What Ray's nodes can fetch a package from.
_FETCHED = ("s3://", "gs://", "azure://", "abfss://")
_SHOWN = 5


def pack(folder: Path, archive: Path) -> Path:
    """Zip `folder` as Ray would, obeying `.rayignore`, and return `archive`.

    The same files give the same bytes: a package is named by its content.
    """
    from ray._private.runtime_env.packaging import create_package

    listed = archive.with_suffix(".listed.zip")
    create_package(str(folder), listed, include_gitignore=True)
    with zipfile.ZipFile(listed) as chosen, zipfile.ZipFile(archive, "w") as packed:
        for item in sorted(chosen.infolist(), key=lambda item: item.filename):
            # Without the time of the copy, which differs each time.
            entry = zipfile.ZipInfo(item.filename)
            entry.external_attr = item.external_attr
            entry.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(entry, chosen.read(item))
    listed.unlink()
    return archive


def publish(archive: Path, upload_to: str | None, say: Callable[[str], None]) -> str:
    """What Ray is to be given as the job's files: the archive itself, or its URL in a store.

    Raises KdscaleError for one that is too large for Ray, or a store that it cannot fetch from.
    """
    size = archive.stat().st_size
    if size > WARN_BYTES:
        say(f"note: the upload has {_mib(size)}. {_largest(archive)}")
    if upload_to is None:
        if size > LIMIT_BYTES:
            raise KdscaleError(
                f"The upload has {_mib(size)}, and Ray takes {_mib(LIMIT_BYTES)}. "
                f"{_largest(archive)}",
                "Leave files out with --exclude PATTERN or .rayignore, or send it through an "
                "object store: --upload-to s3://bucket/prefix.",
            )
        return str(archive)
    if not upload_to.startswith(_FETCHED):
        raise KdscaleError(
            f"--upload-to {upload_to!r} is no place that Ray's nodes can fetch from.",
            f"Give a URL that starts with one of {', '.join(_FETCHED)}.",
        )
    store = open_store(upload_to)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()[:32]
    name = f"kdscale-{digest}.zip"
    store.check()
    if not store.exists(name):
        store.put_file(name, archive)
    return f"{store.url}/{name}"


def _largest(archive: Path) -> str:
    """A sentence on the files that take most of the archive."""
    files = sorted(zipfile.ZipFile(archive).infolist(), key=lambda file: -file.compress_size)
    shown = ", ".join(f"{file.filename} {_mib(file.compress_size)}" for file in files[:_SHOWN])
    return f"The largest files: {shown}."


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"
