"""The files that travel with a job: the package, the job script and the resolved config.

They are copied to a separate folder instead of uploading the checkout as it is: a checkout has
`.git`, runs and data, and the config's file is on the submitter's machine. Ray takes a package over
its dashboard, in one request and into its own memory: fine for code, not for hundreds of megabytes.
So the package is measured before anything is sent; one above the limit is refused unless it may go
through an object store, from which each node fetches it.
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
MIB = 2**20
WARN_BYTES = 20 * MIB
# Ray's own limits are 512 MiB for its store and 100 MiB for a request to a dashboard; the smaller
# one decides (ray issue 55877).
LIMIT_BYTES = 100 * MIB
# What Ray's nodes can fetch a package from.
_FETCHED = ("s3://", "gs://", "azure://", "abfss://")
_SHOWN = 5
_OLDEST = (1980, 1, 1, 0, 0, 0)


def checkout() -> Path:
    """Return the folder that holds `kdscale/` and `jobs/`; KdscaleError without `jobs/`."""
    assert kdscale.__file__ is not None
    root = Path(kdscale.__file__).resolve().parent.parent
    if not (root / "jobs" / "run.py").is_file():
        raise KdscaleError(
            f"kdscale is installed at {root}, without its `jobs` folder.",
            "Submit from a checkout: `git clone` the project and `pip install -e .` in it.",
        )
    return root


def stage(root: Path, config_text: str, folder: Path, excludes: Sequence[str] = ()) -> Path:
    """Fill the empty `folder` with the files that a job needs of the checkout `root`.

    `config_text` becomes `job/config.yaml`, the path that the entrypoint names. `excludes` and the
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
            if left_out.match_file(f"{path.relative_to(root)}{'/' if path.is_dir() else ''}")
        }

    for name in ("kdscale", "jobs"):
        shutil.copytree(root / name, folder / name, ignore=ignore)
    if (root / "pyproject.toml").is_file():
        shutil.copy2(root / "pyproject.toml", folder)
    config = folder / CONFIG_PATH
    config.parent.mkdir()
    config.write_text(config_text, encoding="utf-8")
    return folder


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
