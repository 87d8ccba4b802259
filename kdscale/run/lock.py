"""Lock of a run: a lease on its output, so that two drivers never write over each other.

A run's driver holds it from its first write to its end. A second driver is refused, or waits. The
driver of the same Ray job takes over at once when it is submitted again, and so does any driver on
the machine of an owner whose process is gone; elsewhere a dead owner's lease expires.
"""

import getpass
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kdscale.errors import ExitCode, KdscaleError
from kdscale.store import HeldLease, Lease, LeaseConfig, Store, conditional_put, read_lease

LEASE_KEY = "lease.json"
LEASE_SECONDS = 60.0
_PAUSE_SECONDS = 2.0


class RunLockedError(KdscaleError):
    """A run that another driver has locked."""

    exit_code = ExitCode.LOCKED


@contextmanager
def run_lease(
    output: Store,
    owner: str | None = None,
    wait: float | None = None,
    seconds: float = LEASE_SECONDS,
) -> Iterator[HeldLease]:
    """Hold the lease on a run's output while the block lasts.

    Args:
        output: The run's output.
        owner: A name for messages; by default the Ray job, or this process.
        wait: Seconds to wait for it; by default until it is clear whether the owner is alive.
        seconds: Time after which an owner that does not renew it counts as dead.

    Raises:
        RunLockedError: Another driver has it.
    """
    claim = output.put_if_absent if conditional_put(output) else None
    config = LeaseConfig(seconds, claim=claim, is_dead=_is_dead)
    lease = _take(output, owner or this_driver(), config, wait)
    try:
        yield lease
    finally:
        lease.close()


def ray_job() -> str | None:
    """Return the id of the Ray job whose driver this process is, None if there is none."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    found: str | None = job.get("metadata", {}).get("job_submission_id")
    return found


def this_driver() -> str:
    """Return the name of this driver: the same for each submission of one Ray job."""
    if (job := ray_job()) is not None:
        return f"job {job}"
    return f"process {os.getpid()} of {getpass.getuser()} on {platform.node()}"


def lease_owner(output: Store) -> Lease | None:
    """Return the last lease on the output, None if there was none."""
    return read_lease(output, LEASE_KEY)


def _take(output: Store, owner: str, config: LeaseConfig, wait: float | None) -> HeldLease:
    """Try until the lease is free, the time is up or, without one, a renewal shows a live owner."""
    deadline = float("inf") if wait is None else time.monotonic() + wait
    first: Lease | None = None
    while True:
        try:
            return HeldLease(output, LEASE_KEY, owner, config, _process(os.getpid()))
        except KdscaleError as error:
            found = lease_owner(output)
            renewed = wait is None and first is not None and found != first
            if renewed or time.monotonic() >= deadline:
                raise _locked(output, found, config) from error
            if first is None:
                first = found
                print(f"{error.problem} Waiting to see whether it is alive.", flush=True)
        time.sleep(_PAUSE_SECONDS)


def _locked(output: Store, found: Lease | None, config: LeaseConfig) -> RunLockedError:
    assert found is not None  # nothing deletes it
    now, since = config.clock(), datetime.fromtimestamp(found.since, UTC)
    kind, _, name = found.owner.partition(" ")
    stop = f"kdscale stop {name}" if kind == "job" else f"end {found.owner}"
    return RunLockedError(
        f"The run in {output} is locked: {found.owner} has held it since "
        f"{since.isoformat(timespec='seconds')}, last seen {max(now - found.renewed, 0):.0f} s "
        "ago.",
        f"Let it finish, stop it ({stop}), or wait for it: --wait-for-lease SECONDS. If it is "
        f"dead, its lease ends {config.seconds:.0f} s after it was last seen. For a separate "
        "run give this one another `output`.",
    )


def _process(pid: int) -> str:
    """Return a name that no other process has or will have, "" if it is dead or not to be known.

    A machine without /proc has no names.
    """
    try:
        # The fields after the name in brackets; the 20th of them is the time of the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A zombie is dead, though its parent has not waited for it.
        return "" if fields[0] == "Z" else f"{_machine()}/{pid}/{fields[19]}"
    except OSError:
        return ""


def _machine() -> str:
    """Return the name of this boot of the machine and of its namespace of process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


def _is_dead(lease: Lease) -> bool:
    """Return whether the owner's process was on this machine and is gone."""
    machine, _, rest = lease.process.rpartition("/")[0].rpartition("/")
    if not rest.isdigit() or not _process(os.getpid()).startswith(f"{machine}/"):
        return False
    return _process(int(rest)) != lease.process
