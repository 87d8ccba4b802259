"""The end of a training: slopes against numpy's fit, intervals against many trials."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest

from kdscale.report.load import ReportData, load_report_data
from kdscale.report.training import (
    endings,
    passes_read,
    share_read,
    training_sentences,
    training_table,
    trend,
)
from tests.unit.report.sample import sample_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return load_report_data(sample_run(tmp_path_factory.mktemp("run")))


def _line(slope: float, noise: np.ndarray, end: float = 3.0) -> list[tuple[float, float]]:
    steps = 10.0 * np.arange(1, len(noise) + 1)
    values = end + slope * (steps - steps[-1]) + noise
    return [(float(x), float(y)) for x, y in zip(steps, values, strict=True)]


def test_the_slope_is_that_of_least_squares() -> None:
    points = _line(-0.002, np.random.default_rng(0).normal(0, 0.05, 60))
    found = trend(points)
    assert found is not None
    x, y = np.array(points[40:]).T  # the last third
    (slope, start), covariance = np.polyfit(x, y, 1, cov=True)
    end = start + slope * x[-1]
    assert found.end == pytest.approx(end)
    assert found.change == pytest.approx(100 * slope / end)
    # Where residuals are not correlated, Student's: t(0.975, 18) = 2.100922.
    low, high = found.interval
    rest = y - start - slope * x
    correlation = (rest[1:] @ rest[:-1]) / (rest @ rest)
    if correlation <= 0:
        half = 2.100922 * math.sqrt(covariance[0, 0])
        assert (high - low) / 2 == pytest.approx(100 * half / end, rel=1e-5)
    assert low < found.change < high


@pytest.mark.parametrize(("correlation", "least"), [(0.0, 0.93), (0.4, 0.88)])
def test_the_interval_covers_the_true_slope(correlation: float, least: float) -> None:
    random, covered, trials = np.random.default_rng(1), 0, 400
    for _ in range(trials):
        noise = random.normal(0, 0.05, 150)
        for place in range(1, len(noise)):
            noise[place] += correlation * noise[place - 1]
        found = trend(_line(-0.001, noise))
        assert found is not None
        low, high = (bound * found.end / 100 for bound in found.interval)
        covered += low <= -0.001 <= high
    assert least < covered / trials <= 0.99


@pytest.mark.parametrize(
    ("slope", "noise", "said"),
    [
        (-0.003, 0.001, "still falling: 10.0% ("),
        (+0.003, 0.001, "rising: 10.0% ("),
        (0.0, 0.001, "flat: "),
        (0.0, 0.3, "neither seen to fall nor to rise for its noise: "),
    ],
)
def test_a_sentence_says_how_it_ended(slope: float, noise: float, said: str) -> None:
    values = np.random.default_rng(2).normal(0, noise, 90)
    found = trend(_line(slope, values))
    assert found is not None
    assert found.verdict.startswith(said)
    assert found.verdict.endswith("a hundred steps")


def test_too_few_or_no_numbers_have_no_slope() -> None:
    assert trend([]) is None
    assert trend(_line(0.0, np.zeros(9))) is None
    assert trend([(1.0, math.nan)] * 30) is None
    found = trend(_line(0.0, np.zeros(60)))
    assert found is not None
    assert found.verdict == "flat: +0.0% to +0.0% a hundred steps"


def test_each_training_has_its_end(run: ReportData) -> None:
    found = {each.name: each for each in endings(run)}
    assert list(found) == ["student", "student, KL to the teacher", "baseline", "teacher"]
    student = found["student"]
    assert student.step == 200
    # lr = 3e-3 (1 - step / steps) + 3e-4, logged from step 10 on.
    assert student.rate == pytest.approx(3e-4)
    assert student.rate_share == pytest.approx(3e-4 / (3e-3 * 0.95 + 3e-4))
    assert student.gradient_norm == pytest.approx(0.4 + 2 / 170, abs=1e-3)
    # The sample's KL is its loss less 1.9 nats: the same slope, in percent of the loss.
    loss, kl = (trend(run.series("distill", f"train/{key}")) for key in ("ce_loss", "kl"))
    assert loss is not None
    assert kl is not None
    assert student.trend is not None
    assert student.trend.end == loss.end
    assert student.trend.change == pytest.approx(kl.change * kl.end / loss.end)
    assert student.trend.change == pytest.approx(loss.change)
    assert student.trend.interval == pytest.approx(loss.interval)
    table = training_table(run)
    assert table is not None
    assert [row[0] for row in table.rows] == list(found)


def test_the_share_of_the_cache_is_the_curriculums_or_the_steps(run: ReportData) -> None:
    assert share_read(run) == pytest.approx(1 - math.exp(-1))
    assert passes_read(run) == pytest.approx(200 * 8 / 1600)
    assert "The student read 63.2% of the cache's sequences; its steps took 1.00 times" in " ".join(
        training_sentences(run)
    )
    lines = [
        {k: v for k, v in line.items() if k != "curriculum/unique_seen_share"}
        for line in run.metrics["distill"][:5]
    ]
    plain = ReportData(run.results, run.metrics | {"distill": lines}, run.config, "")
    assert share_read(plain) == pytest.approx(50 * 8 / 1600)
    assert "Too few steps were logged" in training_sentences(plain)[0]


def test_what_reads_no_cache_has_no_share(run: ReportData) -> None:
    config = copy.deepcopy(run.config)
    config["distill"]["targets"] = "online"
    assert share_read(ReportData(run.results, run.metrics, config, "")) is None


def test_a_run_without_metrics_says_nothing(run: ReportData, tmp_path: Path) -> None:
    bare = ReportData(run.results, {}, run.config, "")
    assert training_sentences(bare) == []
    assert training_table(bare) is None
