"""Callbacks of Ray Train's controller: worker groups that fail, and groups of another size.

Ray Train ends a group without asking. Before a resize, or within the notice of a preemption, the
ranks are asked to save their state and to leave.
"""

import time
from typing import Any

from kdscale.errors import last_line
from kdscale.workers.channel import Channel

_POLL_SECONDS = 0.5


def callbacks(channel: Channel, patience: float) -> list[Any]:
    """Return Ray Train's callbacks for groups whose jobs come through `channel`.

    A resize waits for the ranks to leave for `patience` seconds; the next group then resumes from
    the last checkpoint.
    """
    from ray.train import UserCallback

    class ReportFailures(UserCallback):
        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            failed = [
                f"rank {rank} failed: {last_line(error)}"
                for rank, error in sorted(worker_exceptions.items())
            ]
            for line in failed:
                channel.log_line(line)
            channel.close_group("; ".join(failed))

    return [ReportFailures(), _checkpoint_before_resize(channel, patience)]


def _checkpoint_before_resize(channel: Channel, patience: float) -> Any:
    """Return the callback that lets the ranks save their state before their group ends.

    The only use of Ray's internals, read in Ray 2.60.0: the public UserCallback hears of reports
    and exceptions only, nothing public precedes a resize, and `get_preemption_info` would have
    every rank poll for itself.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.controller import state

    class CheckpointBeforeResize(ControllerCallback):
        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if isinstance(current_state, state.ResizingState):
                size = current_state.scaling_decision.num_workers
                channel.log_line(f"resizing to {size} workers: saving a checkpoint first")
                wait_for_leave(channel, patience)
                channel.signal("")
            elif isinstance(current_state, state.PreemptingState):
                if not isinstance(previous_state, state.PreemptingState):
                    channel.log_line("a node will be taken away: saving a checkpoint first")
                    channel.signal("resize")
            elif isinstance(current_state, state.RestartingState):
                channel.close_group()
                channel.signal("")

    return CheckpointBeforeResize()


def wait_for_leave(channel: Channel, patience: float) -> None:
    """Ask the ranks to leave, and wait until they have, or for `patience` seconds."""
    channel.signal("resize")
    deadline = time.monotonic() + patience
    while channel.present() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
