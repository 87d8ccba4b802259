"""The devices of a run, and the time that `kdscale plan` foresees for its stages on them.

Kept with the results, so that a report can set what a run cost against the plan wherever it is
opened. The plan is made for the device that evaluated, with the calibration that is at hand.
"""

from collections.abc import Sequence

from kdscale.config import RunConfig
from kdscale.config.hardware import Hardware
from kdscale.errors import KdscaleError
from kdscale.evaluate.results import Devices, Foreseen
from kdscale.plan.calibration import find
from kdscale.plan.hardware import gpu_hardware, this_machine
from kdscale.plan.inputs import read_inputs, workers_of
from kdscale.plan.plan import assumptions
from kdscale.plan.timing import seconds_of
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
        "assumptions": ["The device is not in the plan's table."],
    }
    if hardware is None:
        return found
    try:
        found["planned"], found["assumptions"] = _planned(config, output, hardware, counts)
    except KdscaleError as error:
        found["assumptions"] = [f"No plan can be made: {error.problem}"]
    return found


def _counts(config: RunConfig) -> dict[str, float]:
    """Return the devices of each stage: GPUs or cores; preparing counts as one, as in a plan."""
    found = {"prepare": 1.0}
    for stage in ON_WORKERS:
        workers = workers_of(stage, config)
        found[stage] = workers.count * (workers.gpus or workers.cpus)
    return found


def _planned(
    config: RunConfig, output: Store, hardware: Hardware, counts: dict[str, float]
) -> tuple[dict[str, Foreseen], list[str]]:
    """Return what is foreseen of each stage, and what that rests on."""
    inputs = read_inputs(config, hardware).with_measured(find(output, hardware.name))
    planned: dict[str, Foreseen] = {}
    for stage, count in counts.items():
        seconds = seconds_of(stage, inputs).total
        planned[stage] = {"seconds": seconds, "device_hours": count * seconds / 3600}
    return planned, assumptions(inputs)
