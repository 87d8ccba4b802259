"""Uploads: the real client against a hub on this machine, and what never leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.export.push import check_push
from tests.hub import UploadHub, upload_hub
from tests.unit.export.planted import plant_run

TOKEN = "hf_of_nobody_0123456789abcdefghijklmn"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "export"
    (made / "onnx").mkdir(parents=True)
    (made / "README.md").write_text("---\nlibrary_name: transformers\n---\nA model.\n")
    (made / "model.safetensors").write_bytes(bytes(1000))
    (made / "onnx" / "model.onnx").write_bytes(bytes(500))
    return made


def push(
    folder: Path, hub: UploadHub, *, private: bool = True, token: str | None = TOKEN
) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its endpoint once."""
    code = (
        "import sys; from pathlib import Path; from kdscale.cli import reported_errors\n"
        "from kdscale.export.push import push\n"
        "with reported_errors():\n"
        f"    print(push(Path(sys.argv[1]), 'me/tiny', private={private}))"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder.parent / "hf")}
    env |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_goes_to_a_repository_that_is_made_for_it(folder: Path, private: bool) -> None:
    with upload_hub(public=not private) as hub:
        done = push(folder, hub, private=private)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"{hub.endpoint}/me/tiny/commit/1"
    assert hub.committed == {"README.md", "model.safetensors", "onnx/model.onnx"}
    assert hub.created == [("tiny", private)]
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}  # the card is checked without one
    assert TOKEN not in done.stdout + done.stderr


def test_nothing_private_goes_to_a_public_repository(folder: Path) -> None:
    with upload_hub(public=True) as hub:
        done = push(folder, hub)
    assert done.returncode == 2
    assert "error: me/tiny exists and is public." in done.stderr
    assert hub.committed == set()


def test_a_hub_that_is_out_of_reach_leaves_the_export(folder: Path) -> None:
    with upload_hub() as hub:
        pass
    done = push(folder, hub)
    assert done.returncode == 2
    assert f"error: The hub at {hub.endpoint} did not take me/tiny" in done.stderr
    assert f"hf upload me/tiny {folder}" in done.stderr
    assert TOKEN not in done.stderr


def test_a_name_or_token_that_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    check_push("me/tiny", with_token=False)
    with pytest.raises(KdscaleError, match="HF_TOKEN is not set"):
        check_push("me/tiny")
    with pytest.raises(KdscaleError, match="is no name of a repository"):
        check_push("https://huggingface.co/me/tiny", with_token=False)


def test_a_dry_run_lists_the_files_keeps_none_and_asks_nobody(tmp_path: Path) -> None:
    run = plant_run(str(tmp_path / "run"), tmp_path)
    with upload_hub() as hub:
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("kdscale")), "export", run.url),
                *("--to", str(tmp_path / "out"), "--push", "me/tiny", "--dry-run"),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "", "COLUMNS": "120"},
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.requests == []
    assert not (tmp_path / "out").exists()
    for name in ("README.md", "config.json", "export.json", "model.safetensors", "tokenizer.json"):
        assert name in done.stdout
    last = done.stdout.splitlines()[-2:]
    assert "then to me/tiny (private). None of them did." in " ".join(last)
