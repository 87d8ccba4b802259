"""A run through its stages.

    prepare -> teacher -> cache -> distill -> evaluate -> report

A stage's output is named, or marked, by the fingerprint of its config and of its inputs'
fingerprints, and is published last. Running again skips complete stages and resumes interrupted
ones; a finished model of another config is never overwritten unasked.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from kdscale.config import RunConfig, dump_config
from kdscale.distributed.rank import GracefulStopError
from kdscale.run.artifacts import RunArtifacts, resolve_paths
from kdscale.run.checks import check_run, choose_stages, refuse_incomplete_base
from kdscale.run.expectation import Expectation, write_expectation
from kdscale.run.finished_run import CONFIG_KEY
from kdscale.run.lock import run_lease
from kdscale.run.progress_file import ProgressFile
from kdscale.run.record import RunRecord
from kdscale.run.screen import run_screen
from kdscale.run.stages.base import Stage, StageContext
from kdscale.run.status import RunStatus, run_status
from kdscale.run.stop import StopRequests
from kdscale.store import HeldLease, explained
from kdscale.workers.group import WorkerGroups
from kdscale.workers.progress import stage_progress
from kdscale.workers.ray_session import ray_session


@explained()
def run_pipeline(
    config: RunConfig,
    only: str | None = None,
    start: str | None = None,
    overwrite: bool = False,
    wait_for_lease: float | None = None,
    until: str | None = None,
    expect: Callable[[RunConfig], Expectation | None] = lambda config: None,
) -> str:
    """Run the stages that are not complete; return the report's Markdown summary, "" if none.

    Args:
        config: The run's config.
        only: A single stage to run. Named alone, `evaluate` and `report` run again if complete.
        start: The first stage to run; the stages before must be complete, if they are needed.
        overwrite: Replace models of another config in the same output.
        wait_for_lease: Seconds to wait if another driver has the run: see run_lease.
        until: The last stage to run.
        expect: Says what the run is expected to take, for those who look at its progress.

    Raises:
        KdscaleError: The input is bad; raised before a worker starts.
        RunLockedError: Another driver has the run.
        StoppedError: The run was asked to stop.
    """
    run = RunArtifacts(resolve_paths(config))
    run.output.check()
    chosen = choose_stages(only, start, until)
    for note in check_run(config, only, start, overwrite, until).notes:
        print(f"note: {note}", flush=True)
    prepared, others = run.prepare_fingerprint, run.compared
    with ExitStack() as stack:
        lease = stack.enter_context(run_lease(run.output, wait=wait_for_lease))
        requests = stack.enter_context(StopRequests(run.output))
        progress_file = ProgressFile(run.output, check=lease.check)
        stack.enter_context(_screen(run, progress_file))
        stack.enter_context(progress_file)
        run.fence = lease.fence()
        run.output.put(CONFIG_KEY, dump_config(run.config).encode())
        if (expected := expect(run.config)) is not None:
            write_expectation(run.output, expected)
        record = RunRecord(run.output, run.config.name, run.fingerprint, lease.check)
        print(f"run {run.config.name} on data {prepared} -> {run.output}", flush=True)
        if others:
            print(f"evaluated too: {', '.join(others)}", flush=True)
        driver = _Driver(run, record, lease, requests, progress_file, WorkerGroups())
        driver.run_stages(chosen, is_alone=only is not None)
    report = run.output.child("report")
    return report.get("summary.md").decode() if report.exists("summary.md") else ""


def _screen(run: RunArtifacts, progress_file: ProgressFile) -> AbstractContextManager[None]:
    """Return the display of the run in a terminal; none elsewhere."""

    def look() -> RunStatus:
        return run_status(run.output, progress=progress_file.record())

    return run_screen(run.config.name, look, run.output.local_path() is not None)


@dataclass(frozen=True)
class _Driver:
    """The process that runs the stages, with what it holds from its first write to its end."""

    run: RunArtifacts
    record: RunRecord
    lease: HeldLease
    requests: StopRequests
    progress_file: ProgressFile
    groups: WorkerGroups

    def run_stages(self, chosen: Sequence[Stage], is_alone: bool) -> None:
        """Make what is not complete. `is_alone`: a single stage was asked for by its name."""
        with ExitStack() as stack:
            ray_started = False
            for stage in chosen:
                self.requests.check()
                again = is_alone and stage.repeats_alone
                if not again and stage.is_complete(self.run, self.record):
                    print(f"{stage.name}: complete, skipped", flush=True)
                    continue
                refuse_incomplete_base(self.run, stage)
                stage.check(self.run)
                if stage.needs_ray and not ray_started:
                    stack.enter_context(ray_session())
                    stack.enter_context(self.groups)
                    ray_started = True
                self.run_stage(stage)

    def run_stage(self, stage: Stage) -> None:
        """Make the stage's output, and record how it went."""
        print(f"{stage.name}: started", flush=True)
        fingerprint = stage.fingerprint(self.run)
        with (
            self.record.running(stage.name, fingerprint),
            stage_progress(stage.name, self._stop_requested, self.run.config.name) as progress,
            self.requests.graceful(stage.supports_graceful_stop),
        ):
            self.progress_file.begin(progress, fingerprint)
            try:
                lines = stage.make(StageContext(self.run, self.record, self.groups, progress))
            except GracefulStopError as error:
                raise self.requests.error() from error
        for line in lines:
            print(f"{stage.name}: {line}", flush=True)
        print(f"{stage.name}: done in {self.record.seconds()[stage.name]:.1f} s", flush=True)

    def _stop_requested(self) -> bool:
        self.lease.check_known()
        return self.requests.stop_requested()
