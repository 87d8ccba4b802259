"""The program as a user meets it: what it imports, how it fails, what its stages are called."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdscale.cli import main, reported_errors
from kdscale.store import connection
from tests.runs import tiny_config, write_config, write_corpus
from tests.s3 import S3Server

HEAVY = ("torch", "ray", "wandb", "deepspeed", "transformers", "pydantic", "rich", "yaml", "numpy")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_importing_the_program_imports_nothing_heavy() -> None:
    done = python(
        f"import sys, kdscale.cli; print([n for n in {HEAVY!r} if n in sys.modules])",
    )
    assert done.stdout == "[]\n", done.stderr


def test_submit_room_needs_no_torch() -> None:
    heavy = ("torch", "ray", "wandb", "deepspeed", "transformers")
    done = python(f"import sys, kdscale.submit; print([n for n in {heavy!r} if n in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for command in ("run", "plan", "submit", "status", "logs", "stop", "cache", "init", "doctor"):
        assert f" {command} " in text


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("kdscale sub", "submit"),
        ("kdscale run run.yaml --only ev", "evaluate"),
        ("kdscale run run.yaml --set distill.training.st", "distill.training.steps="),
        ("kdscale status --backend k", "kuberay"),
        ("kdscale init --cluster ku", "kuberay"),
    ],
)
def test_the_shell_completes_commands_options_and_fields(words: str, found: str) -> None:
    done = python(
        "from kdscale.cli import main; main()",
        _KDSCALE_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split()) - 1),
    )
    assert found in done.stdout.split(), done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["cache", "--help"], ["run", "absent.yaml"]])
def test_the_package_runs_as_the_program_does(arguments: list[str]) -> None:
    script = [str(Path(sys.executable).with_name("kdscale"))]
    module = [sys.executable, "-m", "kdscale"]
    wide = {**os.environ, "COLUMNS": "100"}
    ran, expected = (
        subprocess.run(
            [*program, *arguments], capture_output=True, text=True, env=wide, check=False
        )
        for program in (module, script)
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (
        expected.returncode,
        expected.stdout,
        expected.stderr,
    )
    if "--help" in arguments:
        assert "Usage: kdscale " in ran.stdout
        assert "__main__" not in ran.stdout


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "command",
    [
        ("plan", "run.yaml", "--tokens"),
        ("status", "run", "--every"),
        ("run", "run.yaml", "--wait-for-lease"),
        ("cache", "audit", "cache", "--budget"),
        ("cache", "verify", "cache", "--sample"),
    ],
)
def test_options_take_finite_numbers_alone(
    command: tuple[str, ...], bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*command, bad) == 2
    told = " ".join(capsys.readouterr().err.split())
    # NaN and what lies below a bound may be refused by that.
    assert "is no finite number" in told or (bad != "inf" and "Invalid value for" in told)


def test_error_is_two_lines_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "absent.yaml") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: The config 'absent.yaml' cannot be read: No such file or directory.",
        "fix: Check the path, or write a starter config with `kdscale init`.",
    ]


def test_debug_adds_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSCALE_DEBUG", "1")
    assert run("run", "absent.yaml") == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("fix: ")


@pytest.mark.parametrize("option", ["--only", "--from"])
def test_unknown_stage(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert run("run", "x.yaml", option, "bake") == 2
    assert "'bake' is no stage" in capsys.readouterr().err


def test_only_and_from_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "x.yaml", "--only", "cache", "--from", "cache") == 2
    assert "give one of them" in capsys.readouterr().err


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdscale.config.load_config", interrupt)
    assert run("run", "x.yaml") == 130


def test_a_job_fails_with_the_reason_last(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "jobs" / "run.py"
    done = subprocess.run(
        [sys.executable, str(script), "absent.yaml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-2:]
    assert last[0].startswith("error: The config 'absent.yaml' cannot be read")
    assert last[1].startswith("fix: ")


@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize("command", ["run", "run-graph"])
def test_a_starting_job_obeys_interrupts(ignored: bool, command: str) -> None:
    """Also where its cluster ignores them, and where the interrupt comes in a callback.

    `ray start` in the background of a script ignores interrupts; a callback swallows exceptions.
    """
    code = (
        "import os, signal, weakref\n"
        "from kdscale.cli import entry\n"
        f"entry._handle_interrupts({command == 'run-graph'})\n"
        "class Thing: pass\n"
        "thing = Thing()\n"
        "watch = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))\n"
        "try:\n"
        "    del thing\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('heard')\n"
        "else:\n"
        "    print('deaf')\n"
    )
    shell = ("trap '' INT; " if ignored else "") + f'exec {sys.executable} -c "$0"'
    done = subprocess.run(["sh", "-c", shell, code], capture_output=True, text=True, check=False)
    if command == "run":
        assert done.returncode == -signal.SIGINT, done
        assert done.stdout == ""
    else:
        # The first one is swallowed, as it would be anywhere: a graph is asked again.
        assert done.stdout == "heard\n", done


def test_a_full_disk_is_told_wherever_it_is_met(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "[Errno 28] No space left on device"
    with pytest.raises(SystemExit) as ended, reported_errors():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/file")
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: /data/file cannot be used: the disk is full ({said}")
    # Where no file is named, as of a write: in a worker, and with what it was raised from.
    with pytest.raises(SystemExit), reported_errors():
        raise RuntimeError("a task failed") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    err = capsys.readouterr().err
    assert err.startswith(f"error: A file cannot be used: the disk is full ({said})")
    assert "fix: Free space" in err


def test_our_own_bug_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="ours"), reported_errors():
        raise ValueError("ours")


@pytest.mark.s3
@pytest.mark.parametrize("place", ["no-such-bucket", "kdscale"])
def test_every_command_tells_of_a_bucket_that_cannot_be_used(
    place: str,
    s3_env: S3Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    what = "the bucket does not exist"
    if place == "kdscale":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-and-more")
        what = "access was denied"
    url = f"s3://{place}/runs/1"
    monkeypatch.setattr(connection, "_answered", set())
    corpus = write_corpus(tmp_path / "corpus")
    config = str(write_config(tmp_path / "run.yaml", tiny_config(corpus, str(tmp_path / "out"))))
    train = f"data.train={{kind: text, path: {url}}}"
    teacher = ("--set", f"teacher={{load: {url}}}", "--set", "data.tokenizer={kind: teacher}")
    saved = f"data.train={{kind: huggingface, path: {url}}}"
    for arguments in (
        ["status", url],
        ["report", url],
        ["report", url, url],
        ["export", url, "--to", str(tmp_path / "exported")],
        ["cache", "inspect", url],
        ["cache", "verify", url],
        ["cache", "stats", url],
        ["data", "preview", config, "--set", train],
        ["data", "preview", config, "--set", saved],
        ["data", "preview", config, *teacher],
        ["plan", config, *teacher],
        ["plan", config, "--set", f"output={url}"],
        ["run", config, "--set", f"output={url}"],
        ["run", config, "--set", train],
        ["run", config, *teacher],
    ):
        assert run(*arguments) == 2, arguments
        err = capsys.readouterr().err
        assert err.startswith("error: "), arguments
        assert what in err, arguments
        assert url in err, arguments
        assert "\nfix: " in err, arguments
        assert "hunter2" not in err
