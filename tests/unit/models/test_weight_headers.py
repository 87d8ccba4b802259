"""Headers of weights: right, with no weight read, and every broken file named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.models.weight_headers import INDEX, SINGLE, TensorHeader, weight_headers
from kdscale.store import open_store, upload_folder
from kdscale.store.fsspec_backend import FsspecBackend
from tests.hub import files_hub, use_hub
from tests.unit.models.teachers import make_teacher

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("models") / "one"
    return folder, make_teacher(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, teacher: tuple[Path, PreTrainedModel]) -> Path:
    folder = tmp_path_factory.mktemp("models") / "shards"
    teacher[1].save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read of a remote store gave."""
    found: list[int] = []

    def counted(name: str) -> None:
        real = getattr(FsspecBackend, name)

        def method(self: FsspecBackend, *arguments: object) -> bytes:
            data: bytes = real(self, *arguments)
            found.append(len(data))
            return data

        monkeypatch.setattr(FsspecBackend, name, method)

    counted("read")
    counted("read_range")
    return found


def as_read_by_safetensors(folder: Path) -> dict[str, TensorHeader]:
    headers = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                headers[name] = TensorHeader(part.get_dtype(), tuple(part.get_shape()), file.name)
    return headers


def test_headers_are_those_that_safetensors_reads(
    teacher: tuple[Path, PreTrainedModel], shards: Path
) -> None:
    folder, model = teacher
    found = weight_headers(str(folder))
    assert found == as_read_by_safetensors(folder)
    assert found["model.embed_tokens.weight"] == TensorHeader("F32", (97, 24), SINGLE)
    assert set(found) <= set(model.state_dict())
    assert weight_headers(str(shards)) == as_read_by_safetensors(shards)
    assert {name: h.shape for name, h in weight_headers(str(shards)).items()} == {
        name: h.shape for name, h in found.items()
    }


def test_types_of_half_a_byte_scalars_and_empty_tensors(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3.0, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4, dtype=torch.int64),
        "eighth": torch.zeros(3, 5).to(torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / SINGLE)
    assert weight_headers(str(tmp_path)) == {
        "scalar": TensorHeader("BF16", (), SINGLE),
        "empty": TensorHeader("I64", (0, 4), SINGLE),
        "eighth": TensorHeader("F8_E4M3", (3, 5), SINGLE),
    }


def test_a_remote_models_weights_stay_where_they_are(shards: Path, read: list[int]) -> None:
    upload_folder(shards, open_store("memory://weights"), "model")
    assert weight_headers("memory://weights/model") == as_read_by_safetensors(shards)
    headers = sum(
        8 + int.from_bytes(file.read_bytes()[:8], "little") for file in shards.glob("*.safetensors")
    )
    assert sum(read) == headers + (shards / INDEX).stat().st_size


def test_a_hubs_weights_stay_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: Path
) -> None:
    save_file({"weight": torch.zeros(1000, 1000)}, tmp_path / SINGLE)
    with files_hub("me/large", tmp_path) as hub:
        use_hub(monkeypatch, hub, tmp_path / "hub")
        assert weight_headers("me/large") == {"weight": TensorHeader("F32", (1000, 1000), SINGLE)}
        assert hub.sent[SINGLE] < 200_000
        with pytest.raises(KdscaleError, match="no model 'me/lost'"):
            weight_headers("me/lost")
    with files_hub("me/shards", shards) as hub:
        use_hub(monkeypatch, hub, tmp_path / "hub")
        assert weight_headers("me/shards") == as_read_by_safetensors(shards)
    with pytest.raises(KdscaleError, match="neither in the hub's cache"):
        weight_headers("me/shards")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: POINTER.encode(), "git-lfs pointer"),
        (lambda data: b"", "is empty"),
        (lambda data: data[:5], "too short"),
        (lambda data: data[:60], "is damaged: it has 60 bytes, and its header alone"),
        (lambda data: data[: len(data) // 2], "is damaged.* its header describes"),
        (lambda data: data[:-1], "is damaged.* its header describes"),
        (lambda data: data + b"x", "is damaged.* its header describes"),
        (lambda data: b"<!DOCTYPE html>" + data, "no safetensors file"),
        (lambda data: data[:8] + b"[" + data[9:], "header cannot be read"),
        (lambda data: data.replace(b'"F32"', b'"F64"', 1), "header cannot be read"),
    ],
)
@pytest.mark.parametrize("is_remote", [False, True])
def test_a_broken_file_is_named(copy: Path, damage: object, said: str, is_remote: bool) -> None:
    broken = sorted(copy.glob("*.safetensors"))[1]
    broken.write_bytes(damage(broken.read_bytes()))  # type: ignore[operator]
    source = str(copy)
    if is_remote:
        source = f"memory://broken/{abs(hash(copy))}"
        upload_folder(copy, open_store("memory://broken"), source.rpartition("/")[2])
    with pytest.raises(KdscaleError, match=said) as found:
        weight_headers(source)
    assert broken.name in found.value.problem


def test_missing_files_are_named(copy: Path) -> None:
    lost = sorted(copy.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(KdscaleError, match=rf"{lost.name} does not exist, one of 1 files"):
        weight_headers(str(copy))
    (copy / INDEX).write_text(POINTER)
    with pytest.raises(KdscaleError, match=f"{INDEX} is a git-lfs pointer"):
        weight_headers(str(copy))
    (copy / INDEX).write_text(json.dumps(["no index"]))
    with pytest.raises(KdscaleError, match=f"{INDEX}.*no index of weights"):
        weight_headers(str(copy))
    (copy / INDEX).unlink()
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    for file in copy.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(KdscaleError, match=r"neither model.safetensors .* but pytorch_model.bin"):
        weight_headers(str(copy))
