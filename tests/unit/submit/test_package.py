"""The files that travel with a job: all rooms, the config, and nothing to bloat the upload."""

import zipfile
from pathlib import Path

import pytest

import kdscale
from kdscale.errors import KdscaleError
from kdscale.submit import checkout, stage


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_staged_files(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    kept = [
        "kdscale/__init__.py",
        "kdscale/cache/rows.py",
        "kdscale/data/rows.py",
        "jobs/run.py",
        "jobs/configs/a.yaml",
        "pyproject.toml",
        ".rayignore",
    ]
    left = [
        ".git/config",
        ".venv/bin/python",
        "runs/a/student.safetensors",
        "wandb/offline/run.wandb",
        "kdscale/__pycache__/x.pyc",
        "kdscale/cache/__pycache__/x.pyc",
        "jobs/.mypy_cache/x",
        "notes.txt",
    ]
    for name in kept + left:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    folder = tmp_path / "staged"
    folder.mkdir()
    assert stage(root, "name: demo\n", folder) == folder
    assert files(folder) == {*kept, "job/config.yaml"}
    assert (folder / "job/config.yaml").read_text() == "name: demo\n"
    assert (folder / "kdscale/cache/rows.py").read_text() == "kdscale/cache/rows.py"


def test_this_checkout_stages_every_module(tmp_path: Path) -> None:
    root = checkout()
    stage(root, "", tmp_path)
    modules = {path.relative_to(root).as_posix() for path in (root / "kdscale").rglob("*.py")}
    assert modules <= files(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 5_000_000


def test_rayignore_keeps_the_rooms(tmp_path: Path) -> None:
    """Ray reads `.rayignore` like a `.gitignore`: a bare `cache` would leave out a room."""
    from ray._private.runtime_env.packaging import create_package

    root, folder, archive = checkout(), tmp_path / "staged", tmp_path / "package.zip"
    folder.mkdir()
    stage(root, "", folder)
    create_package(str(folder), archive, include_gitignore=True)
    packed = zipfile.ZipFile(archive).namelist()
    modules = {path.relative_to(root).as_posix() for path in (root / "kdscale").rglob("*.py")}
    assert {name for name in modules if name not in packed} == set()
    assert "job/config.yaml" in packed


def test_without_jobs_nothing_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages" / "kdscale" / "__init__.py"
    monkeypatch.setattr(kdscale, "__file__", str(installed))
    with pytest.raises(KdscaleError, match="without its `jobs` folder"):
        checkout()
