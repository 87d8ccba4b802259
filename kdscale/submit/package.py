"""The files that travel with a job: the package, the job scripts and the resolved config.

They are copied to a folder of their own instead of uploading the checkout as it is. A checkout
holds `.git`, runs and data, which soon pass Ray's upload limit; and the config has to travel too,
because its file is on the submitter's machine. `.rayignore` is taken along: Ray obeys it.
"""

import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import kdscale
from kdscale.config.text import read_text
from kdscale.errors import KdscaleError

# Names left out wherever they stand. `cache` and `data` must not be among them: they are rooms.
EXCLUDES = (
    *(".git", ".venv", "venv", "__pycache__", "*.pyc", "*.egg-info"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", "runs", "wandb"),
)
CONFIG_PATH = "job/config.yaml"
_OPTIONAL = ("pyproject.toml", ".rayignore")


def checkout() -> Path:
    """The folder that holds `kdscale/` and `jobs/`; KdscaleError where there is no `jobs/`."""
    assert kdscale.__file__ is not None
    root = Path(kdscale.__file__).resolve().parent.parent
    if not (root / "jobs" / "run.py").is_file():
        raise KdscaleError(
            f"kdscale is installed at {root}, without its `jobs` folder.",
            "Submit from a checkout: `git clone` the project and `pip install -e .` in it.",
        )
    return root


def stage(root: Path, config_text: str, folder: Path, excludes: Sequence[str] = ()) -> Path:
    """Fill the empty `folder` with what a job needs of the checkout `root`, and return it.

    `config_text` becomes `job/config.yaml`, the path that the entrypoint names. A pattern of
    `excludes` leaves out what it matches by name, or by path from `root`: `*.bin`, `jobs/data`.
    """
    ignore = _ignore(root, (*EXCLUDES, *excludes))
    for name in ("kdscale", "jobs"):
        shutil.copytree(root / name, folder / name, ignore=ignore)
    for name in _OPTIONAL:
        if (root / name).is_file():
            shutil.copy2(root / name, folder / name)
    config = folder / CONFIG_PATH
    config.parent.mkdir()
    config.write_text(config_text, encoding="utf-8")
    return folder


def ignored(root: Path) -> list[str]:
    """The patterns of the checkout's `.rayignore`, which Ray obeys besides."""
    file = root / ".rayignore"
    text = read_text(file, "list of patterns", "Make it readable.") if file.is_file() else ""
    lines = text.splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _ignore(root: Path, patterns: Sequence[str]) -> Callable[[str, list[str]], set[str]]:
    def left(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(root)
        return {
            name
            for name in names
            for pattern in patterns
            if fnmatch(name, pattern) or fnmatch((inside / name).as_posix(), pattern.strip("/"))
        }

    return left
