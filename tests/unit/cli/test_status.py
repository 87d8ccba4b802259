"""`kdscale status` of a run: text, JSON, a watch that ends, and exit codes; and of a job."""

import json
from pathlib import Path

import pytest

from kdscale.cli import jobs, main, status
from kdscale.run.progress_file import ProgressFile
from kdscale.run.record import RunRecord
from kdscale.store import Store, open_store
from kdscale.submit import cluster
from kdscale.workers.progress import RunningStage
from tests.runs import tiny_config, write_config


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "output"))


@pytest.fixture
def config(tmp_path: Path, output: Store) -> Path:
    return write_config(tmp_path / "run.yaml", tiny_config(tmp_path, output.url))


def fail_in_teacher(output: Store) -> None:
    """Write the files of a driver that got through 3 of 9 steps."""
    record = RunRecord(output, "tiny", "f")
    progress = RunningStage("teacher")
    with ProgressFile(output) as progress_file, record.running("teacher", "t"):
        progress_file.begin(progress, "t")
        progress.update(3, 9, "teacher")
        progress.channel.close_group("rank 1 failed: lost")
        progress.drain()
        raise RuntimeError("boom")


def test_text_of_a_failed_run(
    output: Store, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError):
        fail_in_teacher(output)
    for thing in (output.url, str(config)):
        assert run("status", thing) == 1
        text = capsys.readouterr().out
        assert text.startswith("tiny: failed\n")
        assert f"output: {output}" in text
        assert "3/9 teacher, 1 worker groups failed" in text
        assert "rank 1 failed: lost" in text
        assert text.endswith("cause: RuntimeError: boom\n")


def test_json_of_a_failed_run(output: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError):
        fail_in_teacher(output)
    assert run("status", output.url, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["driver"]["stage"]) == ("failed", "teacher")
    teacher = found["stages"][1]
    assert (teacher["state"], teacher["done"], teacher["total"]) == ("failed", 3, 9)
    assert [failure["reason"] for failure in teacher["failures"]] == ["rank 1 failed: lost"]


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_watch_ends_with_the_run(
    output: Store,
    form: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    RunRecord(output, "tiny", "f").pinned("x", "f", 1)
    progress_file = ProgressFile(output, seconds=0.01)
    progress_file.__enter__()
    while not output.exists("progress.json"):
        pass
    # The run ends while the watch waits to look a second time.
    monkeypatch.setattr(status.time, "sleep", lambda _: progress_file.__exit__(None, None, None))
    assert run("status", output.url, "--watch", *form) == 0
    text = capsys.readouterr().out
    if form:
        states = [json.loads(line)["state"] for line in text.splitlines()]
        assert states == ["running", "idle"]
    else:
        assert "tiny: idle" in text


def test_what_is_no_run_is_a_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(jobs, "status", lambda *arguments: asked.append(arguments))
    assert run("status", "quickstart-1", "--address", "http://h:8265") == 0
    assert asked == [("quickstart-1", "http://h:8265", None, None, False)]
    assert run("status", "quickstart-1", "--watch") == 2
    assert "is no run" in capsys.readouterr().err


def test_a_mistyped_folder_is_told(
    output: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = Path(output.url)
    fail.mkdir()
    mistyped = str(fail.with_name("outptu"))
    assert run("status", mistyped) == 2
    text = capsys.readouterr().err
    assert f"There is no run in {mistyped!r}, as there is no such folder" in text
    assert f"did you mean {output.url!r}?" in text
    (fail / "file").write_text("x")
    assert run("status", f"{output.url}/file") == 2
    assert "it is a file" in capsys.readouterr().err
    assert run("status", "s3:/bucket/run") == 2
    assert "Write s3://bucket/run" in capsys.readouterr().err
    # Without a slash it may be a job's id as well.
    monkeypatch.chdir(fail.parent)
    monkeypatch.setattr(cluster, "DEFAULT_ADDRESS", "http://127.0.0.1:1")
    assert run("status", "outptu") == 3
    text = capsys.readouterr().err
    assert "There is no such folder 'outptu' here, and no such job was submitted" in text
    assert "from here: did you mean 'output'?" in text
    assert "job server" not in text
    # A cluster that the user has named is not passed over.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    assert run("status", "outptu") == 3
    assert "No Ray job server answers at http://127.0.0.1:2" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["logs", "wait", "stop"])
def test_a_path_is_no_jobs_id(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "runs/quickstart") == 2
    assert "'runs/quickstart' is a path or a URL, not a job's id" in capsys.readouterr().err
