"""Folders to a store and back."""

import os
import uuid
from pathlib import Path

import pytest

from kdscale.store import Store, download_folder, open_store, upload_folder


@pytest.fixture(
    params=[
        "local",
        pytest.param("fsspec", marks=pytest.mark.s3),
        pytest.param("obstore", marks=pytest.mark.s3),
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a folder, and a real S3 server through either client."""
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    monkeypatch.setenv("KDSCALE_STORE", request.param)
    server = request.getfixturevalue("s3_env")
    return open_store(f"{server.url}/{uuid.uuid4().hex}")


def make_folder(folder: Path) -> dict[str, bytes]:
    files = {
        "config.json": b"{}",
        "model.safetensors": os.urandom(500_000),
        "deep/er/tokens": b"t",
        "empty": b"",
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_there_and_back(store: Store, tmp_path: Path) -> None:
    files = make_folder(tmp_path / "source")
    upload_folder(tmp_path / "source", store, "models/student", last="config.json")
    assert store.list("models/") == sorted(f"models/student/{name}" for name in files)
    target = download_folder(store, "models/student", tmp_path / "target")
    assert target == tmp_path / "target"
    assert files_in(target) == files


def test_the_marker_never_stands_over_a_mixture(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_folder(source)
    upload_folder(source, store, "model", last="config.json")
    # A second upload fails on one file: the marker of the first must be gone by then.
    (source / "empty").unlink()
    (source / "empty").symlink_to("/proc/self/mem")  # A file whose first byte cannot be read.
    with pytest.raises(OSError, match="Input/output error"):
        upload_folder(source, store, "model", last="config.json")
    assert not store.exists("model/config.json")
    assert store.exists("model/model.safetensors")


def test_a_marker_that_is_not_there_is_refused_before_anything_is_written(
    store: Store, tmp_path: Path
) -> None:
    make_folder(tmp_path / "source")
    with pytest.raises(FileNotFoundError, match="done"):
        upload_folder(tmp_path / "source", store, "model", last="done")
    assert store.list() == []


def test_only_what_is_missing_or_differs_in_size_is_fetched(store: Store, tmp_path: Path) -> None:
    files = make_folder(tmp_path / "source")
    upload_folder(tmp_path / "source", store, "model")
    target = download_folder(store, "model", tmp_path / "target")
    (target / "config.json").write_bytes(b"[]")
    (target / "model.safetensors").write_bytes(b"half")
    (target / "empty").unlink()
    (target / "mine").write_bytes(b"kept")
    download_folder(store, "model", target)
    assert files_in(target) == files | {"config.json": b"[]", "mine": b"kept"}


def test_an_empty_prefix_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        download_folder(store, "nothing", tmp_path / "target")
    assert not (tmp_path / "target").exists()
