"""The screen of a run in a terminal of 80 and of 120 columns, and what stays off it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from kdscale.run.expectation import Expectation
from kdscale.run.status import Losses, RunStatus, StageStatus, _dollars, _seconds_left
from kdscale.run.status_text import status_lines

EXPECTED = Expectation(
    hardware="H100",
    on_demand=6.88,
    seconds={"prepare": 10, "teacher": 0, "cache": 600, "distill": 400, "evaluate": 50},
    devices={"prepare": 1, "teacher": 1, "cache": 8, "distill": 8, "evaluate": 1},
    assumptions=[],
)
LOSSES = {"train/loss": 5.2345, "train/ce_loss": 5.2015, "train/kl": 0.0337, "validation/loss": 5.1}
STAGES = (
    StageStatus(name="prepare", state="complete", seconds=12.0),
    StageStatus(name="teacher", state="complete"),
    StageStatus(
        name="cache", state="complete", seconds=630, shards_committed=40, shards_planned=40
    ),
    StageStatus(
        name="distill",
        state="running",
        seconds=90,
        done=3_000,
        total=12_000,
        note="student",
        tokens_per_second=123_456,
        seconds_left=270,
        losses=(Losses("distill", 3_000, dict(LOSSES)),),
    ),
    StageStatus(name="evaluate", state="waiting"),
    StageStatus(name="report", state="waiting"),
)
SCRIPT = """
import logging, os, subprocess, sys, time
from kdscale.run.screen import run_screen
from tests.unit.run.test_screen import status

with run_screen("tiny", status, True):
    print("distill: started")
    os.write(1, b"DeepSpeed says something\\n")
    print("100%|####| 3/3 tqdm", file=sys.stderr)
    subprocess.run(["git", "no-such-command"])
    for rank in range(2):
        print(f"distill: rank {rank} of 2 (pid 7): W&B: offline. Look: wandb leet /tmp/run")
    print("distill: rank 0 of 2 (pid 7): a remark of a worker")
    print("evaluate: gap recovered on validation: 38.4%, " + "of much text, " * 9)
    time.sleep(2.5)
print("after the screen")
"""


def status() -> RunStatus:
    """Return a run on its way."""
    return RunStatus(
        name="tiny",
        output="s3://bucket/tiny",
        state="running",
        heard_seconds_ago=1.0,
        driver=None,
        earlier_drivers=(),
        stages=STAGES,
        expected=EXPECTED,
        seconds_left=_seconds_left(STAGES, EXPECTED, 2),
        dollars=_dollars(STAGES, EXPECTED),
    )


def test_time_left_is_of_the_stages_that_run_and_of_those_to_come() -> None:
    # 9,000 steps in 270 s are left of the student, 12,000 of the baseline; evaluation as planned.
    assert _seconds_left(STAGES, EXPECTED, 2) == pytest.approx(270 + 360 + 50)
    assert _seconds_left(STAGES, EXPECTED, 1) == pytest.approx(270 + 50)
    assert _seconds_left(STAGES, None, 1) is None
    started = StageStatus(name="cache", state="running", seconds=200)
    assert _seconds_left((started,), EXPECTED, 1) == pytest.approx(400)


def test_cost_is_of_the_devices_that_each_stage_occupies() -> None:
    hours = (12 * 1 + 630 * 8 + 90 * 8) / 3600
    assert _dollars(STAGES, EXPECTED) == pytest.approx(6.88 * hours)
    assert _dollars(STAGES, None) is None
    assert _dollars(STAGES, EXPECTED.model_copy(update={"on_demand": 0})) is None


@pytest.mark.parametrize("width", [80, 120])
def test_lines_break_between_figures_only(width: int) -> None:
    lines = status_lines(status(), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in ("3,000/12,000 student", "123,456 tokens/s", "validation/loss 5.1000"):
        assert part in text
    assert "time left: about 11 min 20 s" in text
    assert "cost so far: $11.03, at $6.88 an hour for each H100" in text


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_the_run_and_not_the_libraries(columns: int) -> None:
    shown, log = in_terminal(columns)
    assert max(map(len, shown.splitlines())) <= columns
    for text in ("distill: started", "3,000/12,000 student", "student, step 3,000: loss 5.2345"):
        assert text in shown
    assert "after the screen" in shown
    assert shown.count("W&B: offline") == 1
    for chatter in ("DeepSpeed", "tqdm", "no-such-command", "remark of a worker"):
        assert chatter not in shown
        assert chatter in log
    assert log.count("W&B: offline") == 2


def in_terminal(columns: int) -> tuple[str, str]:
    """Run SCRIPT in a pseudo-terminal; return what it shows, frame after frame, and its log."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment | {"TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(slave)
    found = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        found += part
    os.close(master)
    assert process.wait(60) == 0, found
    # A frame is drawn over the one before.
    text = re.sub(r"\x1b\[[0-9]*A", "\n", found.decode())
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")
    (log,) = re.findall(rf"log: (\S+-{process.pid}\.log)", text)[:1]
    return text, Path(log).read_text(encoding="utf-8")
