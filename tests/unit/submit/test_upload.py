"""The package on its way: named by its content, measured, refused or sent through a store."""

import zipfile
from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.store import open_store
from kdscale.submit import stage, upload


def packed(folder: Path, name: str = "package.zip") -> Path:
    staged = folder / f"staged-{name}"
    (staged / "jobs").mkdir(parents=True)
    (staged / "jobs" / "run.py").write_text("print('hello')")
    (staged / ".rayignore").write_text("*.bin\n")
    (staged / "weights.bin").write_bytes(b"x" * 1000)
    return upload.pack(staged, folder / name)


def test_the_same_files_are_the_same_package(tmp_path: Path) -> None:
    first, second = packed(tmp_path, "a.zip"), packed(tmp_path, "b.zip")
    assert first.read_bytes() == second.read_bytes()
    names = {name.rstrip("/") for name in zipfile.ZipFile(first).namelist()}
    assert {"jobs/run.py", ".rayignore"} <= names
    assert "weights.bin" not in names


def test_excluded_files_stay(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    for name in ("kdscale/a.py", "jobs/big.bin", "jobs/data/x.txt", "jobs/run.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    folder = tmp_path / "staged"
    folder.mkdir()
    stage(root, "", folder, ["*.bin", "jobs/data"])
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"kdscale/a.py", "jobs/run.py", "job/config.yaml"}


def test_a_small_package_goes_through_ray_without_a_word(tmp_path: Path) -> None:
    archive, said = packed(tmp_path), []
    assert upload.publish(archive, None, said.append) == str(archive)
    assert said == []


def test_a_large_one_is_pointed_out_and_a_larger_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, said = packed(tmp_path), []
    monkeypatch.setattr(upload, "WARN_BYTES", 10)
    assert upload.publish(archive, None, said.append) == str(archive)
    assert "MiB. The largest files: " in said[0]
    assert "jobs/run.py" in said[0]
    monkeypatch.setattr(upload, "LIMIT_BYTES", 20)
    with pytest.raises(KdscaleError) as caught:
        upload.publish(archive, None, said.append)
    assert "jobs/run.py" in caught.value.problem
    assert "--upload-to s3://bucket/prefix" in caught.value.fix


def test_only_where_nodes_can_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(KdscaleError, match="nodes can fetch from"):
        upload.publish(packed(tmp_path), str(tmp_path), lambda _: None)


@pytest.mark.s3
def test_through_a_real_object_store(tmp_path: Path, s3_env: object) -> None:
    archive = packed(tmp_path)
    url = upload.publish(archive, "s3://kdscale/code", lambda _: None)
    assert (
        upload.publish(packed(tmp_path, "again.zip"), "s3://kdscale/code/", lambda _: None) == url
    )
    store = open_store("s3://kdscale/code")
    (name,) = store.list()
    assert url == f"s3://kdscale/code/{name}"
    assert store.get(name) == archive.read_bytes()
