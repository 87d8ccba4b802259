"""Metrics without Ray: nothing happens. With it: tests/ray/test_observability.py."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdscale.tracking import prometheus as metrics

DOCS = Path(__file__).parents[3] / "docs" / "observability.md"


class Spy:
    """Stands for a metric of Ray; keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[float, dict[str, str]]] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.told.append((value, dict(tags)))

    inc = set


@pytest.fixture
def spies(monkeypatch: pytest.MonkeyPatch) -> dict[str, Spy]:
    made = {name: Spy() for name in metrics.METRICS}
    monkeypatch.setattr(metrics, "_made", dict[str, Any](made))
    monkeypatch.setattr(metrics, "_tags", None)
    monkeypatch.setattr(metrics, "_counted", {})
    return made


def test_outside_of_a_worker_nothing_is_measured_or_imported() -> None:
    code = (
        "import sys; from kdscale.tracking import prometheus as metrics; metrics.gauge('kdscale_loss', 1.0); "
        "metrics.count('kdscale_tokens', 1); metrics.progress('rows', 1, 2, 3); "
        "metrics.logged({'train/loss': 1.0}); print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_metric_is_documented() -> None:
    text = DOCS.read_text()
    for name, (kind, _) in metrics.METRICS.items():
        assert f"`{name}_total`" in text if kind == "Counter" else f"`{name}`" in text
    assert set(metrics.LOGGED.values()) <= metrics.METRICS.keys()


def test_tokens_count_from_where_the_attempt_begins(spies: dict[str, Spy]) -> None:
    metrics.bind("r", "distill", 0, 1)
    assert spies["kdscale_attempt"].told[0][0] == 1
    for part, tokens in (("student", 500), ("student", 700), ("baseline", 0), ("baseline", 60)):
        metrics.progress(part, 1, 9, tokens)
    tags = {"run": "r", "stage": "distill", "rank": "0"}
    assert spies["kdscale_tokens"].told == [
        (200, tags | {"part": "student"}),
        (60, tags | {"part": "baseline"}),
    ]


def test_a_stage_that_is_left_says_so_and_tells_nothing_more(spies: dict[str, Spy]) -> None:
    metrics.bind("r", "teacher", 1, 0)
    metrics.progress("teacher", 9, 9, 50)
    metrics.release()
    metrics.gauge("kdscale_loss", 1.0)
    tags = {"run": "r", "stage": "teacher", "rank": "1", "part": ""}
    assert spies["kdscale_working"].told == [(1, tags), (0, tags)]
    assert spies["kdscale_loss"].told == []
    metrics.release()
    metrics.bind("r", "cache", 1, 0)
    assert spies["kdscale_working"].told[2:] == [(1, tags | {"stage": "cache"})]


def test_a_total_is_counted_once(spies: dict[str, Spy]) -> None:
    metrics.bind("r", "cache", 1, 0)
    for total in (0.0, 1.5, 1.5, 4.0):
        metrics.count_to("kdscale_queue_wait_seconds", total)
    assert [value for value, _ in spies["kdscale_queue_wait_seconds"].told] == [1.5, 2.5]


def test_of_what_is_logged_only_the_known_is_told(spies: dict[str, Spy]) -> None:
    metrics.bind("r", "teacher", 0, 0)
    metrics.logged({"train/loss": 4.0, "curriculum/pool_size": 7.0})
    assert spies["kdscale_loss"].told[0][0] == 4.0
    assert not any(spy.told for name, spy in spies.items() if name.endswith("kl"))
