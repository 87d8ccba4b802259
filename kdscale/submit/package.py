"""The files that travel with a job: the package, the job script and the resolved config.

They are copied to a separate folder instead of uploading what is around them: a checkout has
`.git`, runs and data, an environment has all other packages, and the config's file is on the
submitter's machine. Ray takes a package over its dashboard, in one request and into its own memory:
fine for code, not for hundreds of megabytes. So the package is measured before anything is sent;
one above the limit is refused unless it may go through an object store, from which each node
fetches it.
"""

import hashlib
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import kdscale
from kdscale.config.text import read_text
from kdscale.errors import KdscaleError
from kdscale.store import open_store

# Names left out wherever they stand. `cache` and `data` must not be among them: they are packages.
EXCLUDES = (
    *(".git", ".venv", "venv", "__pycache__", "*.pyc", "*.egg-info"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", "runs", "wandb"),
)
CONFIG_PATH = "job/config.yaml"
_SHARED = Path("kdscale", "share")
MIB = 2**20
WARN_BYTES = 20 * MIB
# Ray's own limits are 512 MiB for its store and 100 MiB for a request to a dashboard; the smaller
# one decides (ray issue 55877).
LIMIT_BYTES = 100 * MIB
# What Ray's nodes can fetch a package from.
_FETCHED = ("s3://", "gs://", "azure://", "abfss://")
_SHOWN = 5
_OLDEST = (1980, 1, 1, 0, 0, 0)


def code_root() -> Path:
    """Return the folder that holds the package `kdscale`: a checkout, or where it is installed."""
    assert kdscale.__file__ is not None
    return Path(kdscale.__file__).resolve().parent.parent


def stage(root: Path, config_text: str, folder: Path, excludes: Sequence[str] = ()) -> Path:
    """Fill the empty `folder` with the package below `root`, its `jobs` and the config.

    `config_text` becomes `job/config.yaml`, the path that the entrypoint names. `excludes` and a
    checkout's `.rayignore` are patterns as of a `.gitignore`: `*.bin`, `jobs/data`. Returns the
    folder.
    """
    from pathspec import GitIgnoreSpec

    left_out = GitIgnoreSpec.from_lines([*EXCLUDES, *excludes, *ignored(root)])

    def ignore(inside: str, names: list[str]) -> set[str]:
        paths = {name: Path(inside, name) for name in names}
        return {
            name
            for name, path in paths.items()
            if left_out.match_file(f"{_shown(path, root)}{'/' if path.is_dir() else ''}")
        }

    shutil.copytree(root / "kdscale", folder / "kdscale", ignore=ignore)
    # Where the entrypoint looks for it; the one in the package serves a job that submits others.
    shutil.copytree(root / _SHARED / "jobs", folder / "jobs", ignore=ignore)
    config = folder / CONFIG_PATH
    config.parent.mkdir()
    config.write_text(config_text, encoding="utf-8")
    return folder


def _shown(path: Path, root: Path) -> Path:
    """Return a file's path as patterns spell it: that of a checkout."""
    inside = path.relative_to(root)
    return inside.relative_to(_SHARED) if inside.is_relative_to(_SHARED) else inside


def ignored(root: Path) -> list[str]:
    """Return the patterns of the checkout's `.rayignore`."""
    file = root / ".rayignore"
    text = read_text(file, "list of patterns", "Make it readable.") if file.is_file() else ""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pack(folder: Path, archive: Path) -> Path:
    """Zip `folder` and return `archive`. The same files give the same bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            # Without the time of the copy, which differs each time.
            if path.is_file():
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _OLDEST)
                entry.external_attr = path.stat().st_mode << 16
                packed.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return archive


def publish(archive: Path, upload_to: str | None, say: Callable[[str], None]) -> str:
    """Return what Ray is given as the job's files: the archive itself, or its URL in a store.

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
    """Return a sentence on the files that take most of the archive."""
    files = sorted(zipfile.ZipFile(archive).infolist(), key=lambda file: -file.compress_size)
    shown = ", ".join(f"{file.filename} {_mib(file.compress_size)}" for file in files[:_SHOWN])
    return f"The largest files: {shown}."


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"
