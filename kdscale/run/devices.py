"""The devices of a run, and the time that `kdscale plan` foresaw for its stages on them.

Kept with the results, so that a report can set what a run cost against the plan wherever it is
opened. The plan is the one that the run began with (`plan.json`).
"""

from collections.abc import Sequence

from kdscale.config import RunConfig
from kdscale.evaluate.schema import Devices
from kdscale.plan.hardware import gpu_hardware, this_machine
from kdscale.plan.inputs import workers_of
from kdscale.run.expectation import read_expectation
from kdscale.run.stage_names import ON_WORKERS
from kdscale.store import Store


def describe_devices(config: RunConfig, output: Store, gpus: Sequence[str]) -> Devices:
    """Return the devices of the run in `output`, whose evaluation saw the GPUs of these names."""
    is_gpu = config.evaluate.workers.gpus > 0
    hardware = (gpu_hardware(gpus[0]) if gpus else None) if is_gpu else this_machine()
    counts = _counts(config)
    found: Devices = {
        "name": hardware.name if hardware else None,
        "kind": "gpu" if is_gpu else "cpu",
        "devices": counts,
        "price_hour": hardware.on_demand or None if hardware else None,
        "price_source": hardware.source if hardware else None,
        "watts": hardware.watts if hardware else None,
        "watts_source": hardware.watts_source if hardware else None,
        "planned": {},
        "assumptions": ["No plan was made for the device when the run began."],
    }
    expected = read_expectation(output)
    if hardware is not None and expected is not None and expected.hardware == hardware.name:
        found["planned"] = {
            stage: {"seconds": seconds, "device_hours": counts[stage] * seconds / 3600}
            for stage, seconds in expected.seconds.items()
        }
        found["assumptions"] = expected.assumptions
    return found


def _counts(config: RunConfig) -> dict[str, float]:
    """Return the devices of each stage: GPUs or cores; preparing counts as one, as in a plan."""
    found = {"prepare": 1.0}
    for stage in ON_WORKERS:
        workers = workers_of(stage, config)
        found[stage] = workers.count * (workers.gpus or workers.cpus)
    return found
