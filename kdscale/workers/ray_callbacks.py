"""What happens when Ray Train ends a group, or wants one of another size.

These run in Ray Train's controller. It ends a group without asking; before it does so for a resize,
or within the notice of a preemption, the ranks are asked to save what they have and to leave.
"""

import time
from typing import Any

from kdscale.errors import last_line
from kdscale.workers.progress import Reporter

_POLL_SECONDS = 0.5


def callbacks(desk: Any, patience: float) -> list[Any]:
    """Ray Train's callbacks for groups that have their tasks from `desk`, an actor of Desk. A
    resize waits for the ranks' leave for `patience` seconds; without it the next group goes on from
    the last checkpoint."""
    import ray
    from ray.train import UserCallback
    from ray.train.v2._internal.execution.callback import ControllerCallback

    def reporter() -> Reporter:
        """Of the present stage. The first one's is there before any worker starts."""
        found: Reporter = ray.get(desk.reporter.remote())
        return found

    class ReportFailures(UserCallback):
        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            stage = reporter()
            stage.close()
            failed = [
                f"rank {rank} failed: {last_line(error)}"
                for rank, error in sorted(worker_exceptions.items())
            ]
            for line in failed:
                stage.say(line)
            stage.fail("; ".join(failed))

    class CheckpointBeforeResize(ControllerCallback):
        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            before, now = type(previous_state).__name__, type(current_state).__name__
            if now == "ResizingState":
                size, stage = current_state.scaling_decision.num_workers, reporter()
                stage.say(f"the cluster has room for {size} workers: saving to go on with them")
                wait_for_leave(stage, patience)
                stage.ask("")
            elif now == "PreemptingState" and before != now:
                stage = reporter()
                stage.say("a node will be taken away: saving to go on without it")
                stage.ask("regroup")
            elif now == "RestartingState":
                stage = reporter()
                stage.close()
                stage.ask("")

    return [ReportFailures(), CheckpointBeforeResize()]


def wait_for_leave(reporter: Reporter, patience: float) -> None:
    """Ask the ranks to leave, and wait until they have, or for `patience` seconds."""
    reporter.ask("regroup")
    deadline = time.monotonic() + patience
    while reporter.present() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
