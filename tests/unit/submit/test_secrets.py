"""Secrets on their way: sealed beside the output, opened by the job, gone after it."""

import os
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from kdscale.errors import KdscaleError
from kdscale.store import open_store
from kdscale.store.redact import redact
from kdscale.submit import secrets

VALUES = {"HF_TOKEN": "not-for-eyes", "OTHER": "größer"}


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VALUES, secrets.LOCATION_VARIABLE, secrets.KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_there_and_back(tmp_path: Path) -> None:
    keys = secrets.seal_secrets(VALUES, str(tmp_path), "job-1")
    (path,) = (tmp_path / "secrets").iterdir()
    assert path.name.startswith("job-1-")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert b"not-for-eyes" not in path.read_bytes()
    assert "not-for-eyes" not in str(keys)
    os.environ.update(keys)
    secrets.open_secrets()
    assert {name: os.environ[name] for name in VALUES} == VALUES
    # What speaks of them speaks of stars.
    assert redact("the token is not-for-eyes!") == "the token is ***!"
    secrets.discard_secrets()
    assert not path.parent.exists()
    secrets.discard_secrets()


def test_every_submission_has_an_object_and_a_key_of_its_own(tmp_path: Path) -> None:
    first, second = (secrets.seal_secrets(VALUES, str(tmp_path), "same") for _ in range(2))
    assert first[secrets.KEY_VARIABLE] != second[secrets.KEY_VARIABLE]
    paths = [Path(keys[secrets.LOCATION_VARIABLE]) for keys in (first, second)]
    assert paths[0].read_bytes() != paths[1].read_bytes()
    secrets.discard_secrets(str(paths[1]))
    os.environ.update(first)
    secrets.open_secrets()
    assert os.environ["HF_TOKEN"] == VALUES["HF_TOKEN"]


def test_the_size_tells_little(tmp_path: Path) -> None:
    secrets.seal_secrets({"A": "x"}, str(tmp_path), "a")
    secrets.seal_secrets({"A": "x" * 100}, str(tmp_path), "b")
    first, second = (tmp_path / "secrets").iterdir()
    assert first.stat().st_size == second.stat().st_size


def test_without_secrets_nothing_is_opened() -> None:
    secrets.open_secrets()
    secrets.discard_secrets()


@pytest.mark.parametrize("key", [Fernet.generate_key().decode(), "00" * 32], ids=["other", "bad"])
def test_an_object_that_is_gone_or_another(tmp_path: Path, key: str) -> None:
    os.environ.update(secrets.seal_secrets(VALUES, str(tmp_path), "job-1"))
    os.environ[secrets.KEY_VARIABLE] = key
    with pytest.raises(KdscaleError, match="does not hold this job's secrets"):
        secrets.open_secrets()
    secrets.discard_secrets()
    with pytest.raises(KdscaleError, match="are not at"):
        secrets.open_secrets()
    assert "HF_TOKEN" not in os.environ


def test_the_key_to_the_store_cannot_lie_in_it() -> None:
    with pytest.raises(KdscaleError, match="AWS_SECRET_ACCESS_KEY cannot be a secret"):
        secrets.seal_secrets({"AWS_SECRET_ACCESS_KEY": "x"}, "s3://bucket/run", "job-1")


@pytest.mark.s3
def test_through_a_real_object_store(s3_env: object) -> None:
    url = "s3://kdscale/sealed"
    os.environ.update(secrets.seal_secrets(VALUES, url, "job-1"))
    secrets.open_secrets()
    assert os.environ["HF_TOKEN"] == "not-for-eyes"
    secrets.discard_secrets()
    assert open_store(url).list() == []
