"""The process that runs one job of this machine: starts it, stops it when asked, keeps its verdict.

python -m kdscale.submit.local_runner FOLDER GRACE_SECONDS COMMAND...

It inherits the lock on the folder and holds it as long as it lives, which says better than any
process id whether the job is going: an id may belong to another process tomorrow, a lock goes with
its holder. For the same reason nobody else signals the job. Who wants it to end leaves a file
`stop`, and this process, whose own child the job is, sees to it.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LOCK, STOP, RESULT, LOG = "lock", "stop", "result.json", "log"
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


def run(folder: Path, grace_seconds: float, command: list[str]) -> None:
    """Run `command` in `folder`/code to its end, its output in `folder`/log."""
    with (folder / LOG).open("ab") as log:
        started = time.time()
        _write(folder, {"started": started})
        # Closes all inherited files: the lock stays with this process alone.
        child = subprocess.Popen(
            command,
            cwd=folder / "code",
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_prepare,
        )
    stopped = _wait(child, folder, grace_seconds)
    result = {"exit_code": child.returncode, "stopped": stopped, "ended": time.time()}
    _write(folder, {"started": started, **result})


def _wait(child: "subprocess.Popen[bytes]", folder: Path, grace_seconds: float) -> bool:
    """Wait for the child's end; whether it had been asked to."""
    deadline = float("inf")
    while child.poll() is None:
        if deadline == float("inf") and (folder / STOP).exists():
            asked = (folder / STOP).read_text()
            deadline = time.monotonic() + (float(asked) if asked else grace_seconds)
            child.send_signal(signal.SIGINT)
        if time.monotonic() > deadline:
            os.killpg(child.pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    return deadline < float("inf")


def _write(folder: Path, content: dict[str, object]) -> None:
    """Whole or not at all: others read it at any time."""
    temporary = folder / f"{RESULT}.tmp"
    temporary.write_text(json.dumps(content))
    temporary.replace(folder / RESULT)


def _prepare() -> None:
    """In the job's process, before its program."""
    # A shell's background command, such as a submission in a script, passes on that it is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        # A job whose runner was killed ends too: nobody would ever know its verdict.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    run(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
