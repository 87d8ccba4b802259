"""What a run needs of this machine, its store and its cluster, each finding with the fix.

Only what no run can do without fails; the rest warns. `check` is a finding and the bounds of one,
`machine`, `services`, `storage` and `cluster` make them, `probes` is what goes to other nodes.
"""

import os
from collections.abc import Callable, Iterator

from kdscale.doctor.check import Check

__all__ = ["Check", "run_checks"]


def run_checks(output: str | None = None, cluster: str | None = None) -> Iterator[Check]:
    """All checks, in the order in which to mend them.

    output: a run's output to try, if any. cluster: the address of a cluster to look at; that of
    RAY_ADDRESS where there is one, none otherwise.
    """
    from kdscale.doctor import machine, services

    yield machine.python_version()
    for name in machine.LIBRARIES:
        yield machine.library(name)
    for each in (
        *(machine.devices, machine.compiler, machine.ninja, machine.cuda_toolkit),
        *(machine.shared_memory, machine.disk, machine.open_files),
        *(services.ray_address, services.wandb),
    ):
        yield guarded(each)
    if output is not None:
        from kdscale.doctor import storage

        yield from storage.checks(output)
    if address := cluster or os.environ.get("RAY_ADDRESS"):
        from kdscale.doctor import cluster as nodes

        yield from nodes.checks(address)


def guarded(check: Callable[[], Check]) -> Check:
    """The check's finding; a library that cannot even be imported is a finding too."""
    try:
        return check()
    except ImportError as error:
        name = check.__name__.replace("_", " ")
        return Check("failed", name, str(error), "Mend the library named, then run this again.")
