"""Connection to the Ray cluster that the environment names, or a Ray started for this run."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kdscale.errors import KdscaleError, last_line

# Together less than a minute: Ray itself would try for ten.
_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 5.0
_ANSWER_SECONDS = 40.0
_FIX = (
    "Start the cluster, correct RAY_ADDRESS (HEAD:6379 of a cluster that runs), or `unset "
    "RAY_ADDRESS` to let the run start Ray on this machine."
)


@contextmanager
def ray_session() -> Iterator[None]:
    """Initialise Ray for the block. A Ray that was running before is left running.

    Raises:
        KdscaleError: Within about a minute, the cluster that RAY_ADDRESS names does not answer, or
            Ray does not start here.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray Train's own collectives would wait for ever for a rank that is gone.
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "1800")
    # Workers must not move to a folder of Ray's: relative paths in a config would break there.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Keeps CUDA_VISIBLE_DEVICES as it is for tasks without a GPU, as later releases of Ray do.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray Data's record of its own use takes a process, and asks for a Prometheus every few seconds.
    os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")
    options = {}
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address not in ("", "local"):
        _check_answers(address)
    else:
        options = {"address": "local", "include_dashboard": False}
        # No cloud gives notice that this machine goes away: spare each stage a process.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Ray warns at every start that a cluster of one's own is protected by a token.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # Workers' lines come through the channel (channel.py), free of Ray's remarks; their whole
    # output stays in Ray's session folder.
    whole_logs = os.environ.get("KDSCALE_WORKER_LOGS") == "1"
    # Ray takes SIGTERM for itself, though a run may have a state to save.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level="WARNING", log_to_driver=whole_logs, **options)
    except Exception as error:  # Ray's own, RuntimeError, ConnectionError and plain ones
        with suppress(Exception):
            ray.shutdown()
        raise _not_started(error, "" if options else address) from error
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise KdscaleError within a minute if no cluster answers at `address`."""
    if address.startswith(("http://", "https://")):
        raise KdscaleError(
            f"RAY_ADDRESS={address} is where jobs are submitted, and no address that a run "
            "connects to.",
            "Use `kdscale submit`, or give the cluster's own address, HEAD:6379.",
        )
    if address != "auto":
        _reach(address)
    if "://" in address:
        return  # The client's own connection has a limit of half a minute.
    # In another process: nothing ends Ray's attempts in this one.
    check = ["health-check", "--address", address, "--skip-version-check"]
    command = [sys.executable, "-m", "ray.scripts.scripts", *check]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        cause = f"what listens there has not answered as Ray in {_ANSWER_SECONDS:.0f} s"
    else:
        if done.returncode == 0:
            return
        cause = (
            last_line(done.stderr).rstrip(".") or f"its health check ends with {done.returncode}"
        )
    raise KdscaleError(f"No Ray cluster answers at RAY_ADDRESS={address}: {cause}.", _FIX)


def _reach(address: str) -> None:
    """Raise KdscaleError if nothing takes a connection at host:port of `address`."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise KdscaleError(
            f"RAY_ADDRESS={address} is no address of a Ray cluster.",
            "Write it as HEAD:6379, or `unset RAY_ADDRESS` to start Ray on this machine.",
        )
    deadline = time.monotonic() + _RETRY_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except socket.gaierror as error:
            cause = f"the host {host!r} is not known: {error.strerror}"
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(1)
                continue
            cause = error.strerror or str(error)
        else:
            return
        raise KdscaleError(f"No Ray cluster answers at RAY_ADDRESS={address}: {cause}.", _FIX)


def _not_started(error: Exception, address: str) -> KdscaleError:
    """Return the user's text of an error of `ray.init`; `address` is "" if Ray starts here."""
    from kdscale.store.errors import explain

    if (known := explain(error)) is not None:
        return KdscaleError(f"Ray did not start: {known.problem}", known.fix)
    cause = last_line(error).rstrip(".")
    if address:
        return KdscaleError(
            f"This run cannot join the Ray cluster at RAY_ADDRESS={address}: {cause}",
            "Use the cluster's own versions of Ray and Python, look at the head's logs, or "
            "`unset RAY_ADDRESS` to start Ray on this machine.",
        )
    folder = os.environ.get("RAY_TMPDIR") or "/tmp/ray"
    return KdscaleError(
        f"Ray did not start on this machine: {cause}",
        f"Look at the .err and .out files in {folder}/session_latest/logs. Ray needs free memory, "
        f"room in {folder} and in /dev/shm, and free ports: `kdscale doctor` shows them.",
    )


def beside_driver(actor: type) -> Any:
    """Return the class as an actor that takes no worker's place, on this process's node.

    A run ends with its driver's node, but not with another.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(actor)
