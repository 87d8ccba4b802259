"""What is fetched of a remote model: for its config and tokenizer next to nothing."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from kdscale.cli import main
from kdscale.data.tokenizer import train_tokenizer
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import MARKER, ModelReference, loadable, local_folder, source_identity
from kdscale.store import Store, open_store, upload_folder
from kdscale.store.fsspec_backend import FsspecBackend
from tests.runs import tiny_config, write_config
from tests.unit.models.teachers import make_teacher

TEXTS = ["the river runs past the old mill and under the bridge to the sea"] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a teacher with its tokenizer."""
    folder = tmp_path_factory.mktemp("teacher")
    make_teacher(folder, vocab_size=300)
    train_tokenizer(TEXTS, 300, folder)
    return folder


@pytest.fixture
def teacher(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return the teacher in a remote store; copies go to a folder of the test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "machine"))
    (tmp_path / "machine").mkdir()
    store = open_store(f"memory://models/{uuid.uuid4().hex}")
    upload_folder(folder, store, "teacher")
    return store.child("teacher")


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """URLs that were read and the bytes that were given; of a whole file into a file -1."""
    found: list[tuple[str, int]] = []
    for name in ("read", "read_range", "fetch_file"):
        real = getattr(FsspecBackend, name)

        def read(self: FsspecBackend, url: str, *rest: Any, real: Any = real) -> Any:
            given = real(self, url, *rest)
            found.append((url, -1 if given is None else len(given)))
            return given

        monkeypatch.setattr(FsspecBackend, name, read)
    return found


def test_config_and_tokenizer_come_without_weights(
    teacher: Store, touched: list[tuple[str, int]]
) -> None:
    small = Path(loadable(teacher.url, weights=False))
    assert {"config.json", "tokenizer.json"} <= {file.name for file in small.iterdir()}
    assert not list(small.rglob("*.safetensors"))
    assert not any(url.endswith(".safetensors") for url, _ in touched)
    reference = ModelReference("", teacher.url, None, "", 0)
    assert reference.local(weights=False) == str(small)
    whole = Path(reference.local())
    assert whole != small
    assert (whole / "model.safetensors").read_bytes() == teacher.get("model.safetensors")


def test_another_config_at_the_same_place_is_fetched(teacher: Store) -> None:
    first = local_folder(teacher.url, weights=False)
    assert local_folder(teacher.url, weights=False) == first
    other = json.dumps(json.loads(teacher.get("config.json")) | {"pad_token_id": 7})
    teacher.put("config.json", other.encode())
    second = local_folder(teacher.url, weights=False)
    assert json.loads((second / "config.json").read_text())["pad_token_id"] == 7
    teacher.put(MARKER, b"{}")
    assert local_folder(teacher.url) not in (first, second)


def test_plan_and_preview_read_no_weights(
    teacher: Store,
    touched: list[tuple[str, int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{text} {number}")
    config = tiny_config(tmp_path / "text", str(tmp_path / "out"))
    config["teacher"] = {"load": teacher.url}
    config["data"]["tokenizer"] = {"kind": "teacher"}
    path = str(write_config(tmp_path / "run.yaml", config))
    for command in (["plan", path], ["data", "preview", path]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code in (0, None), capsys.readouterr().err
    assert any(url.endswith("/config.json") for url, _ in touched)
    read = [count for url, count in touched if url.endswith(".safetensors")]
    weights = teacher.get("model.safetensors")
    header = 8 + int.from_bytes(weights[:8], "little")
    # A plan looks at the names and shapes of tensors, which stand in front.
    assert read
    assert all(0 <= count <= header < len(weights) for count in read)


def test_what_is_neither_a_folder_nor_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "model").mkdir()
    for source, what in (
        (str(tmp_path / "model.safetensors"), "is a file, where a folder is needed"),
        (str(tmp_path / "absent"), "does not exist"),
        ("runs/1/teacher", "does not exist"),
        ("s3:/bucket/teacher", "is no URL"),
    ):
        for use in (loadable, lambda source: source_identity(source, None)):
            with pytest.raises(KdscaleError, match=what):
                use(source)
    with pytest.raises(KdscaleError, match="There is no model at memory://none"):
        local_folder("memory://none/teacher")
    for empty in ("memory://none/teacher", str(tmp_path / "model")):
        with pytest.raises(KdscaleError, match=r"it has no config\.json among its 0 files"):
            source_identity(empty, None)
    assert loadable("someone/model") == "someone/model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert loadable("~/model") == str(tmp_path / "model")
