"""`kdscale run --only prepare` killed while it cleans, and again while it tokenises."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.runs import kdscale, run_kdscale, tiny_config, write_config

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

FILES, DOCUMENTS = 12, 150
PATIENCE_SECONDS = 240
Times = dict[str, int]


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`kdscale`, killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        started.append(kdscale(*arguments))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def write_corpus(folder: Path) -> Path:
    """Write files of distinct documents: a second of cleaning each."""
    folder.mkdir()
    words = [f"w{n}" for n in range(3000)]
    for number in range(FILES):
        random = np.random.default_rng(number)
        texts = (" ".join(random.choice(words, 400)) for _ in range(DOCUMENTS))
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{number:02}.jsonl").write_text(lines)
    return folder


def arguments(folder: Path, corpus: Path) -> list[str]:
    config = tiny_config(
        corpus,
        str(folder),
        data__train={"kind": "jsonl", "path": str(corpus)},
        data__evaluate={},
        data__cleaning=[{"kind": "near_duplicates"}],
    )
    path = write_config(folder.with_suffix(".yaml"), config)
    return ["run", str(path), "--only", "prepare"]


def work_of(folder: Path) -> Times:
    """Return the objects of unfinished work, and when each was written."""
    found = {}
    for path in folder.glob("prepared/*/work/**/*.*"):
        with suppress(FileNotFoundError):
            if path.suffix in (".texts", ".facts", ".end", ".tokens"):
                found[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return found


def kill_when(process: subprocess.Popen[str], is_time: Callable[[], bool]) -> None:
    """Kill -9 of the driver, and the end of what it had started."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_time():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(family, PATIENCE_SECONDS)
    assert not left


def watch(process: subprocess.Popen[str], folder: Path) -> set[tuple[str, int]]:
    """Return all objects seen until the process has ended, each with the time of its writing."""
    seen: set[tuple[str, int]] = set()
    while process.poll() is None:
        seen |= set(work_of(folder).items())
        time.sleep(0.05)
    assert process.returncode == 0, process.communicate()[0]
    return seen


def contents(folder: Path) -> dict[str, bytes]:
    [manifest] = folder.glob("prepared/*/manifest.json")
    root = manifest.parent
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_killed_prepare_goes_on_and_makes_the_same_bytes(
    tmp_path: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    folder = tmp_path / "killed"
    start = arguments(folder, corpus)

    def count(suffix: str) -> int:
        return sum(key.endswith(suffix) for key in work_of(folder))

    kill_when(begin(*start), lambda: count(".end") >= 3)
    cleaned = work_of(folder)
    assert 3 <= count(".end") < FILES
    kill_when(begin(*start), lambda: count(".tokens") >= 1)
    tokenised = work_of(folder)
    assert count(".end") == FILES
    assert cleaned.items() <= tokenised.items()
    seen = watch(begin(*start), folder)
    # Whatever was there was not written again.
    assert {(key, when) for key, when in seen if key in tokenised} <= set(tokenised.items())
    assert len({key for key, _ in seen}) == len(seen)
    assert not work_of(folder)
    code, log = run_kdscale(*arguments(tmp_path / "whole", corpus))
    assert code == 0, log
    assert contents(folder) == contents(tmp_path / "whole")
