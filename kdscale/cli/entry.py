"""The entry point of jobs/run.py: `kdscale run` as a job of a cluster.

It takes the arguments of `kdscale run` and ends as it does, so that there is one parser and one way
to fail: non-zero, with the problem and its fix as the last lines of the log.
"""

import signal
import sys

from kdscale.cli import main, reported_errors

_GRAPH = "run-graph"


def run_job() -> None:
    """Run the command line's config, or with `run-graph` first its graph of jobs, and exit."""
    is_graph = sys.argv[1:2] == [_GRAPH]
    _handle_interrupts(is_graph)
    from kdscale.submit.log_times import stamp_output
    from kdscale.submit.secrets import discard_secrets, open_secrets

    stamp_output()
    with reported_errors():
        try:
            open_secrets()
            main(sys.argv[1:] if is_graph else ["run", *sys.argv[1:]])
        finally:
            discard_secrets()


def _handle_interrupts(is_graph: bool) -> None:
    """Let SIGINT, by which a job is asked to stop, do so from the start.

    A cluster that a script has started in its background ignores it, and every job inherits that.
    Python's own handler raises KeyboardInterrupt, which is lost where it meets a callback, and
    imports are full of them. So until a run has something to save, and handles the signal itself
    (`kdscale.run.stop`), it ends the process; a graph has jobs to stop.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler if is_graph else signal.SIG_DFL)
