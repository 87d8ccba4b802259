"""The files of a job: all packages and the config; measured, refused or sent through a store."""

import zipfile
from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.store import open_store
from kdscale.submit import code_root, package, stage


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_staged_files(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    kept = [
        "kdscale/__init__.py",
        "kdscale/cache/rows.py",
        "kdscale/data/rows.py",
        "kdscale/share/jobs/run.py",
        "kdscale/share/jobs/configs/a.yaml",
    ]
    left = [
        ".git/config",
        ".venv/bin/python",
        "runs/a/student.safetensors",
        "wandb/offline/run.wandb",
        "kdscale/__pycache__/x.pyc",
        "kdscale/cache/__pycache__/x.pyc",
        "kdscale/share/jobs/.mypy_cache/x",
        "notes.txt",
        "pyproject.toml",
        "kdscale/weights.bin",
        "kdscale/share/jobs/big.safetensors",
        "kdscale/share/jobs/data/x.txt",
    ]
    for name in kept + left:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / ".rayignore").write_text("# comment\n*.bin\n/cache\n")
    folder = tmp_path / "staged"
    folder.mkdir()
    assert stage(root, "name: demo\n", folder, ["*.safetensors", "jobs/data"]) == folder
    assert files(folder) == {*kept, "jobs/run.py", "jobs/configs/a.yaml", "job/config.yaml"}
    assert (folder / "job/config.yaml").read_text() == "name: demo\n"
    assert (folder / "kdscale/cache/rows.py").read_text() == "kdscale/cache/rows.py"


def test_this_checkout_stages_every_module(tmp_path: Path) -> None:
    root = code_root()
    stage(root, "", tmp_path)
    modules = {path.relative_to(root).as_posix() for path in (root / "kdscale").rglob("*.py")}
    staged = files(tmp_path)
    assert modules <= staged
    assert {"jobs/run.py", "kdscale/share/cluster/kuberay.yaml"} <= staged
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 5_000_000


def packed(folder: Path, name: str = "package.zip") -> Path:
    staged = folder / f"staged-{name}"
    (staged / "jobs").mkdir(parents=True)
    (staged / "jobs" / "run.py").write_text("print('hello')")
    return package.pack(staged, folder / name)


def test_the_same_files_are_the_same_package(tmp_path: Path) -> None:
    first, second = packed(tmp_path, "a.zip"), packed(tmp_path, "b.zip")
    assert first.read_bytes() == second.read_bytes()
    names = {name.rstrip("/") for name in zipfile.ZipFile(first).namelist()}
    assert names == {"jobs/run.py"}


def test_a_small_package_goes_through_ray_without_a_word(tmp_path: Path) -> None:
    archive, said = packed(tmp_path), []
    assert package.publish(archive, None, said.append) == str(archive)
    assert said == []


def test_a_large_one_is_pointed_out_and_a_larger_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, said = packed(tmp_path), []
    monkeypatch.setattr(package, "WARN_BYTES", 10)
    assert package.publish(archive, None, said.append) == str(archive)
    assert "MiB. The largest files: " in said[0]
    assert "jobs/run.py" in said[0]
    monkeypatch.setattr(package, "LIMIT_BYTES", 20)
    with pytest.raises(KdscaleError) as caught:
        package.publish(archive, None, said.append)
    assert "jobs/run.py" in caught.value.problem
    assert "--upload-to s3://bucket/prefix" in caught.value.fix


def test_only_where_nodes_can_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(KdscaleError, match="nodes can fetch from"):
        package.publish(packed(tmp_path), str(tmp_path), lambda _: None)


@pytest.mark.s3
def test_through_a_real_object_store(tmp_path: Path, s3_env: object) -> None:
    archive = packed(tmp_path)
    url = package.publish(archive, "s3://kdscale/zips", lambda _: None)
    assert (
        package.publish(packed(tmp_path, "again.zip"), "s3://kdscale/zips/", lambda _: None) == url
    )
    store = open_store("s3://kdscale/zips")
    (name,) = store.list()
    assert url == f"s3://kdscale/zips/{name}"
    assert store.get(name) == archive.read_bytes()
