"""The lease on a run's output: two submissions of one run never write over each other.

A run's driver holds it from its first write to its end. A second driver is refused, or waits. The
driver of the same Ray job takes over at once when it is submitted again, and so does any driver on
the machine of a holder whose process is gone; elsewhere a dead holder's lease expires.
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
from kdscale.store import HeldLease, Lease, Store, Terms, conditional_put, read_lease

LEASE_KEY = "lease.json"
LEASE_SECONDS = 60.0
_PAUSE_SECONDS = 2.0


class RunLockedError(KdscaleError):
    """Another driver holds the run."""

    exit_code = ExitCode.LOCKED


@contextmanager
def run_lease(
    output: Store,
    owner: str | None = None,
    wait: float | None = None,
    seconds: float = LEASE_SECONDS,
) -> Iterator[HeldLease]:
    """The lease of the run whose output this is, while the block lasts.

    owner: by default the Ray job, or this process. wait: seconds to wait for it, by default until
    it is clear whether the holder lives. seconds: after which a holder that no longer renews it
    counts as dead. HeldError where another one holds it.
    """
    claim = output.put_if_absent if conditional_put(output) else None
    terms = Terms(seconds, claim=claim, is_dead=_is_dead)
    lease = _take(output, owner or this_driver(), terms, wait)
    try:
        yield lease
    finally:
        lease.close()


def ray_job() -> str | None:
    """The id of the Ray job that this process is the driver of."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    found: str | None = job.get("metadata", {}).get("job_submission_id")
    return found


def this_driver() -> str:
    """What this driver is called: the same for each submission of one Ray job."""
    if (job := ray_job()) is not None:
        return f"job {job}"
    return f"process {os.getpid()} of {getpass.getuser()} on {platform.node()}"


def holder(output: Store) -> Lease | None:
    """Who held the output last; None where nobody did."""
    return read_lease(output, LEASE_KEY)


def _take(output: Store, owner: str, terms: Terms, wait: float | None) -> HeldLease:
    """Try until the lease is free, the time is up or, without one, a renewal shows a holder that
    lives."""
    deadline = float("inf") if wait is None else time.monotonic() + wait
    first: Lease | None = None
    while True:
        try:
            return HeldLease(output, LEASE_KEY, owner, terms, _process(os.getpid()))
        except KdscaleError as error:
            found = holder(output)
            renewed = wait is None and first is not None and found != first
            if renewed or time.monotonic() >= deadline:
                raise _held(output, found, terms) from error
            if first is None:
                first = found
                print(f"{error.problem} Waiting to see whether it ends.", flush=True)
        time.sleep(_PAUSE_SECONDS)


def _held(output: Store, found: Lease | None, terms: Terms) -> RunLockedError:
    assert found is not None  # nothing deletes it
    now, since = terms.clock(), datetime.fromtimestamp(found.since, UTC)
    kind, _, name = found.owner.partition(" ")
    stop = f"kdscale stop {name}" if kind == "job" else f"end {found.owner}"
    return RunLockedError(
        f"The run in {output} is at work: {found.owner} has held it since "
        f"{since.isoformat(timespec='seconds')}, last seen {max(now - found.renewed, 0):.0f} s "
        "ago.",
        f"Let it finish, stop it ({stop}), or wait for it: --wait-for-lease SECONDS. If it is "
        f"dead, its lease ends {terms.seconds:.0f} s after it was last seen. For a run of its own "
        "give this one another `output`.",
    )


def _process(pid: int) -> str:
    """A name of the process that no other one has or will have; "" where there is none such, or
    where the machine has no /proc to tell."""
    try:
        # Of the line, what follows the name in brackets; the 20th of it is the time of the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A zombie is dead, though nobody has asked after it.
        return "" if fields[0] == "Z" else f"{_machine()}/{pid}/{fields[19]}"
    except OSError:
        return ""


def _machine() -> str:
    """The kernel since its boot, and of it the namespace that process ids are counted in."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


def _is_dead(lease: Lease) -> bool:
    """Whether the holder's process was on this machine and is gone."""
    machine, _, rest = lease.process.rpartition("/")[0].rpartition("/")
    if not rest.isdigit() or not _process(os.getpid()).startswith(f"{machine}/"):
        return False
    return _process(int(rest)) != lease.process
