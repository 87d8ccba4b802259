"""Checks of this machine, a store and a cluster before a run, each finding with a fix.

Only what no run can work without fails, and a GPU that does not work; the rest warns. `machine`,
`gpus`, `storage` and `cluster` make the findings, `probes` is the code that runs on other nodes.
"""

import os
from collections.abc import Callable, Iterator

from kdscale.doctor.machine import Check

__all__ = ["Check", "run_checks"]


def run_checks(output: str | None = None, cluster: str | None = None) -> Iterator[Check]:
    """Yield all findings, in the order in which to fix them.

    output: a run's output to try, if any. cluster: the address of a cluster to look at, by default
    RAY_ADDRESS, if set.
    """
    from kdscale.doctor import gpus, machine, probes

    yield machine.python_version()
    for name in machine.LIBRARIES:
        yield machine.library(name)
    for each in (gpus.devices, machine.compiler, machine.ninja, gpus.cuda_toolkit):
        yield guarded(each)
    yield machine.shared_memory(probes.shared_memory())
    yield machine.disk(*probes.disk())
    yield machine.open_files(probes.open_files())
    yield machine.ray_address()
    yield guarded(machine.wandb)
    if output is not None:
        from kdscale.doctor import storage

        yield from storage.checks(output)
    if address := cluster or os.environ.get("RAY_ADDRESS"):
        from kdscale.doctor import cluster as nodes

        yield from nodes.checks(address)


def guarded(check: Callable[[], Check]) -> Check:
    """Return the check's finding; a library that cannot be imported is a finding too."""
    try:
        return check()
    except ImportError as error:
        name = check.__name__.replace("_", " ")
        return Check("failed", name, str(error), "Reinstall the library, then run this again.")
