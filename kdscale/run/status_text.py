"""A run's status as lines of text: for `kdscale status`, and for the screen of a run at work."""

import time
from collections.abc import Iterable, Iterator

from kdscale.report.formatting import duration
from kdscale.run.progress_file import Driver
from kdscale.run.status import RunStatus, StageStatus
from kdscale.utils.text_table import UNBROKEN, wrapped

_TRAININGS = {"distill": "student"}
"""Models by the names of their files in `metrics/`, where these differ."""


def status_lines(run: RunStatus, width: int | None = None) -> list[str]:
    """Return the lines of a run's status, none wider than `width` but for a word that is."""
    return [
        part
        for line in _lines(run)
        for part in wrapped(line, width, " " * (len(line) - len(line.lstrip()) + 4)).splitlines()
    ]


def _lines(run: RunStatus) -> Iterator[str]:
    yield _headline(run)
    yield f"output: {run.output}"
    if run.driver is not None:
        yield f"driver: {_driver(run.driver)}"
    for stage in run.stages:
        yield from _stage_lines(stage, run)
    if run.expected is not None and run.dollars is not None:
        price, name = run.expected.on_demand, run.expected.hardware
        yield f"cost so far: ${run.dollars:,.2f}, at ${price:,.2f} an hour for each {name}"
    for driver in run.earlier_drivers:
        if driver.state != "complete":
            at = f" at {driver.stage}" if driver.stage else ""
            end = f"{driver.state}{at}, {_clock(driver.heard)}: {driver.cause}"
            yield f"earlier driver: {_driver(driver)}; {end}"
    if run.driver is not None and run.driver.cause:
        yield f"cause: {run.driver.cause}"


def _headline(run: RunStatus) -> str:
    line = f"{run.name}: {run.state}"
    if run.state not in ("running", "lost"):
        return line
    if run.heard_seconds_ago is not None:
        line += f", last heartbeat {duration(run.heard_seconds_ago)} ago"
    if run.state == "running":
        left = run.seconds_left
        line += f"; time left: {'unknown' if left is None else f'about {duration(left)}'}"
    return line


def _driver(driver: Driver) -> str:
    job = f", job {driver.job}" if driver.job else ""
    return f"{driver.host} (pid {driver.pid}{job}), since {_clock(driver.started)}"


def _stage_lines(stage: StageStatus, run: RunStatus) -> Iterator[str]:
    line = f"  {stage.name:<9} {stage.state:<9}"
    if stage.state != "waiting":
        line += f" {duration(stage.seconds):>12}  {_listed(_details(stage))}"
    elif run.expected is not None and run.expected.seconds.get(stage.name):
        line += f" {duration(run.expected.seconds[stage.name]):>12}  planned"
    yield line.rstrip()
    for failure in stage.failures:
        yield f"    {_clock(failure.time)} {failure.reason}"
    for losses in stage.losses:
        values = _listed(
            f"{name.replace('train/', '')} {'NaN' if value is None else f'{value:.4f}'}"
            for name, value in losses.values.items()
        )
        name = _TRAININGS.get(losses.training, losses.training)
        yield f"    {name}, step {losses.step:,}: {values}"


def _listed(parts: Iterable[str]) -> str:
    """Join parts within which no line breaks."""
    return ", ".join(part.replace(" ", UNBROKEN) for part in parts)


def _details(stage: StageStatus) -> Iterator[str]:
    """Yield what is known of a stage."""
    # What a stage said last before its end is no news once it is complete.
    if stage.total and stage.state != "complete":
        yield f"{stage.done:,}/{stage.total:,} {stage.note}".rstrip()
    if stage.shards_committed is not None:
        yield f"{stage.shards_committed:,}/{stage.shards_planned:,} shards committed"
    if stage.tokens_per_second:
        yield f"{stage.tokens_per_second:,.0f} tokens/s"
    if stage.seconds_left is not None:
        yield f"{duration(stage.seconds_left)} left"
    if stage.attempts > 1:
        yield f"attempt {stage.attempts}"
    if stage.failed_groups:
        yield f"{stage.failed_groups} worker groups failed"


def _clock(seconds: float) -> str:
    """Return a time in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
