"""Tracker of a stage's metrics: JSON lines in the store, Prometheus, and W&B where it is wanted.

The JSON lines follow the checkpoints, so a resumed training neither loses nor repeats a step.
"""

from typing import TYPE_CHECKING, Any

from kdscale.store import Store
from kdscale.tracking import prometheus
from kdscale.tracking.jsonl import MetricLines
from kdscale.tracking.wandb_run import WandbRun, start_run

if TYPE_CHECKING:
    from kdscale.config.run import TrackingConfig


def open_tracker(
    config: "TrackingConfig",
    *,
    run: str,
    stage: str,
    store: Store,
    resolved: dict[str, Any],
    start_step: int = 0,
    attempt: int = 0,
) -> "Tracker":
    """Open the tracker of one stage of the run `run`, for one process (rank 0).

    `store` is the run's output, `resolved` its config as W&B shows it. Of metrics logged before,
    those up to `start_step` stay and later ones are dropped, because a training resumed there
    replays them; at 0 all are dropped. `attempt` counts the starts, and distinguishes in W&B what
    two of them logged for one step.
    """
    lines = MetricLines(store, f"metrics/{stage}.jsonl", start_step)
    return Tracker(lines, start_run(config, run, stage, store, resolved), attempt)


class Tracker(WandbRun):
    """The destination of a stage's metrics; only `log` and `flush` touch the store."""

    def __init__(self, lines: MetricLines, wandb_run: Any, attempt: int) -> None:
        super().__init__(wandb_run)
        self._lines = lines
        self._attempt = attempt

    def log(self, step: int, tokens: int, metrics: dict[str, float]) -> None:
        """Record `metrics` after `step` steps and `tokens` target tokens, both counted from 1.

        A value that is not finite becomes null in the JSON lines.
        """
        self._lines.append(step, tokens, metrics)
        prometheus.logged(metrics)
        row = {
            **metrics,
            "trainer/global_step": step,
            "trainer/tokens": tokens,
            "trainer/attempt": self._attempt,
        }
        # Not `step=`: W&B drops a step that goes back, which is what a restart does.
        self._send("log", lambda run: run.log(row))

    def flush(self) -> None:
        """Bring all lines to the store: called with every checkpoint, after it is complete."""
        self._lines.flush()

    def finish(self, exit_code: int = 0) -> None:
        """Flush, and close the W&B run; other than 0 marks it as failed."""
        self._lines.close()
        super().finish(exit_code)
