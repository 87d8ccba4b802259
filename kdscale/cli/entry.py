"""What the files in `jobs/` call: `kdscale run`, with the stage that the file is named after.

A job file takes the arguments of `kdscale run` and ends as it does, so that there is one parser and
one way to fail: non-zero, with the problem and its fix as the last lines of the log.
"""

import signal
import sys
from pathlib import Path

from kdscale.cli import main, reported_errors


def run_job(stage: str | None = None, command: str = "run") -> None:
    """Do `command` with the command line's config, `stage` only where it is given, and exit."""
    _leave_script_folder()
    _obey_interrupts(command)
    from kdscale.submit.log_times import stamp_output
    from kdscale.submit.sealed import discard_secrets, open_secrets

    stamp_output()
    only = [] if stage is None else ["--only", stage]
    with reported_errors():
        try:
            open_secrets()
            main([command, *only, *sys.argv[1:]])
        finally:
            discard_secrets()


def _obey_interrupts(command: str) -> None:
    """Let SIGINT, by which a job is asked to stop, do so from the first moment on.

    A cluster that a script has started in its background ignores it, and hands that down to every
    job. Python's own handler raises KeyboardInterrupt, which is lost where it meets a callback, and
    imports are full of them. So until a run has something to save, and takes the signal for itself
    (`kdscale.run.stop`), it ends the process; a graph of jobs has them to stop.
    """
    own = signal.SIG_DFL if command == "run" else signal.default_int_handler
    signal.signal(signal.SIGINT, own)


def _leave_script_folder() -> None:
    """Take `jobs/` off the import path, where Python puts the folder of a script.

    Its `evaluate.py` would stand before the library `evaluate`, here and in Ray's workers.
    """
    folder = Path(sys.argv[0]).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != folder]
