"""Text files that a user gives: UTF-8 is read, with a mark or without, and all else is refused."""

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdscale.cli import main
from kdscale.config import load_config
from kdscale.config.chat import ChatConfig
from kdscale.config.hardware import load_hardware
from kdscale.config.load import load_kube_options, load_overrides
from kdscale.config.text import decode_text, read_text
from kdscale.data.chat.template import read_template
from kdscale.data.cleaning.augment import load_table
from kdscale.errors import KdscaleError
from kdscale.evaluate.harness import HarnessOptions, run_tasks
from kdscale.submit.cluster import find_token
from kdscale.submit.environment import read_environment
from kdscale.submit.package import ignored
from tests.unit.report.sample import CONFIG

LATIN = "a: 1\n# Prüfung\n".encode("latin-1")


@pytest.mark.parametrize(
    ("raw", "problem", "command"),
    [
        (LATIN, "is not UTF-8: byte 10 of the file, in line 2, is 0xfc,", "iconv -f LATIN1"),
        (codecs.BOM_UTF8 + LATIN, "byte 13 of the file, in line 2, is 0xfc", "iconv -f LATIN1"),
        (b"ok \xe2\x82", "byte 4 of the file, in line 1, is 0xe2", "iconv -f LATIN1"),
        ("a: ü".encode("utf-16"), "is UTF-16, not UTF-8", "iconv -f UTF-16"),
        (codecs.BOM_UTF16_BE + "a".encode("utf-16-be"), "is UTF-16, not", "iconv -f UTF-16"),
        ("a: ü".encode("utf-32"), "is UTF-32, not UTF-8", "iconv -f UTF-32"),
        ("a: 1\nb".encode("utf-16-le"), "byte 2 of the file, in line 1, is 0", "iconv -f UTF-16"),
    ],
)
def test_what_is_not_utf_8_is_named_with_its_place(raw: bytes, problem: str, command: str) -> None:
    with pytest.raises(KdscaleError) as refused:
        decode_text(raw, "The config 'run.yaml'")
    assert refused.value.problem.startswith("The config 'run.yaml' is ")
    assert problem in refused.value.problem
    assert "Save it as UTF-8" in refused.value.fix
    assert command in refused.value.fix


def test_utf_8_is_read_with_a_mark_and_without(tmp_path: Path) -> None:
    assert decode_text(codecs.BOM_UTF8 + "ü\n".encode(), "x") == "ü\n"
    assert decode_text(b"", "x") == ""
    (tmp_path / "dos").write_bytes(codecs.BOM_UTF8 + b"a\r\nb\rc\n")
    assert read_text(tmp_path / "dos", "file", "") == "a\nb\nc\n"
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "no", "No such file")):
        with pytest.raises(KdscaleError, match=f"The file '{path}' cannot be read: {reason}"):
            read_text(path, "file", "Look again.")


def _token(path: Path) -> Any:
    return find_token()


READERS: dict[str, Callable[[Path], Any]] = {
    "config": load_config,
    "student": load_overrides,
    "kube": load_kube_options,
    "hardware": load_hardware,
    "env": lambda path: read_environment(file=path),
    "synonyms": lambda path: load_table(str(path)),
    "template": lambda path: read_template(ChatConfig(template=str(path))),
    "task": lambda path: run_tasks({}, HarnessOptions(tasks=[str(path)])),
    "task in a folder": lambda path: run_tasks({}, HarnessOptions(["x"], [path.parent])),
    "token": _token,
    "rayignore": lambda path: ignored(path.parent),
}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@pytest.mark.parametrize("kind", READERS)
def test_every_file_of_a_users_is_refused_alike(
    kind: str, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"template": "chat.jinja", "rayignore": ".rayignore"}
    path = tmp_path / names.get(kind, "given.yaml")
    path.write_bytes("# Prüfung: hunter2\n".encode(encoding))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(KdscaleError, match=r"UTF-8") as refused:
        READERS[kind](path)
    assert str(path) in refused.value.problem
    assert "hunter2" not in str(refused.value)


def test_files_with_a_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_bytes(codecs.BOM_UTF8 + CONFIG.encode())
    assert load_config(path).name == "quickstart"
    path.write_bytes(codecs.BOM_UTF8 + b"A=1\r\nB=2\r\n")
    assert read_environment(file=path) == {"A": "1", "B": "2"}
    path.write_bytes(codecs.BOM_UTF8 + b"big\tlarge, huge\n")
    assert load_table(str(path)) == {"big": ["large", "huge"]}


def test_the_program_says_it_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(LATIN)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(path)])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "fix"]
