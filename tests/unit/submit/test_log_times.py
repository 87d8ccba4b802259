"""Times in a job's log: written before every line, and read by --since."""

import io
import re
import sys
import time

import pytest

from kdscale.errors import KdscaleError
from kdscale.submit.log_times import VARIABLE, offset_since, stamp_output

LOG = (
    "Running entrypoint for job x\n"
    "2026-11-26T10:00:00Z one\n"
    "2026-11-26T10:00:05Z two\n"
    "a library's own line\n"
    "2026-11-26T10:00:09Z three\n"
)
TEN = 1795687200.0  # 2026-11-26T10:00:00Z


@pytest.mark.parametrize(
    ("since", "first"),
    [(0.0, "one"), (1.0, "two"), (5.0, "two"), (5.9, "two"), (6.0, "three"), (9.0, "three")],
)
def test_since(since: float, first: str) -> None:
    rest = LOG[offset_since(LOG, TEN + since, started=TEN - 100) :]
    assert rest.splitlines()[0].endswith(f"Z {first}")


def test_lines_without_a_time_belong_to_those_before() -> None:
    rest = LOG[offset_since(LOG, TEN + 5, started=None) :]
    assert "a library's own line" in rest
    assert LOG[offset_since(LOG, TEN + 10, started=None) :] == ""


def test_of_a_younger_job_all_is_wanted() -> None:
    assert offset_since("no times\n", TEN, started=TEN) == 0


def test_a_log_without_times_is_refused() -> None:
    with pytest.raises(KdscaleError, match="bears a time"):
        offset_since("no times\n", TEN, started=TEN - 1)


def test_lines_are_stamped(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv(VARIABLE, "0")
    stamp_output()
    assert sys.stdout is out
    monkeypatch.setenv(VARIABLE, "1")
    before = time.time()
    stamp_output()
    print("one", "part", end=" ")
    print("more\ntwo")
    lines = out.getvalue().splitlines()
    assert [re.sub(r"^\S+Z ", "", line) for line in lines] == ["one part more", "two"]
    assert offset_since(out.getvalue(), before, started=None) == 0
