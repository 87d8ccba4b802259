"""Variables and secrets of a job: what is read, what is refused, and that no value is shown."""

from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.submit.environment import looks_secret, read_environment, read_secrets


def test_file_then_options(tmp_path: Path) -> None:
    file = tmp_path / "job.env"
    file.write_text("# comment\n\nA=1\n B=x=y \nC=\n")
    assert read_environment(["A=2"], file) == {"A": "2", "B": "x=y", "C": ""}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(KdscaleError, match="absent"):
        read_environment((), tmp_path / "absent")


@pytest.mark.parametrize("text", ["NAME", "=x", "1A=x", "A B=x", ""])
def test_malformed_variable(text: str) -> None:
    with pytest.raises(KdscaleError, match="NAME=VALUE"):
        read_environment([text])


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("WANDB_API_KEY", "x", True),
        ("HF_TOKEN", "x", True),
        ("TOKEN", "x", True),
        ("db_password", "x", True),
        ("AWS_SECRET_ACCESS_KEY", "x", True),
        ("PROXY", "http://user:pass@host", True),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("KEYBOARD", "us", False),
        ("MONKEYS", "3", False),
        ("PROXY", "http://host", False),
    ],
)
def test_what_looks_like_a_secret(name: str, value: str, secret: bool) -> None:
    assert looks_secret(name, value) is secret
    if not secret:
        assert read_environment([f"{name}={value}"]) == {name: value}
        return
    with pytest.raises(KdscaleError) as caught:
        read_environment([f"{name}={value}"])
    assert name in caught.value.problem
    assert f"--secret {name}" in caught.value.fix
    assert read_environment([f"{name}={value}"], allow_visible=True) == {name: value}


def test_a_refused_value_is_not_shown() -> None:
    with pytest.raises(KdscaleError) as caught:
        read_environment(["HF_TOKEN=not-for-eyes"])
    assert "not-for-eyes" not in str(caught.value)


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "value")
    assert read_secrets(["HF_TOKEN"]) == {"HF_TOKEN": "value"}
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(KdscaleError, match="HF_TOKEN is not set here"):
        read_secrets(["HF_TOKEN"])


def test_a_secret_given_by_value_is_refused_and_not_shown() -> None:
    with pytest.raises(KdscaleError) as caught:
        read_secrets(["HF_TOKEN=not-for-eyes"])
    assert "not-for-eyes" not in str(caught.value)


def test_a_variable_is_a_secret_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "x")
    with pytest.raises(KdscaleError, match="with --env and with --secret"):
        read_secrets(["A"], taken={"A": "y"})
