"""Expectation of a run on this machine, by its plan: for the display of progress and the report."""

import logging

import torch

from kdscale.config import RunConfig
from kdscale.config.hardware import Hardware
from kdscale.errors import KdscaleError
from kdscale.plan.calibration import find
from kdscale.plan.hardware import gpu_hardware, this_machine
from kdscale.plan.inputs import read_inputs, workers_of
from kdscale.plan.plan import assumptions
from kdscale.plan.timing import seconds_of
from kdscale.run.expectation import Expectation
from kdscale.run.stage_names import ON_WORKERS
from kdscale.store import open_store

log = logging.getLogger(__name__)


def expect(config: RunConfig) -> Expectation | None:
    """Return the figures of `kdscale plan` for the run's stages.

    None where the device is not in the plan's table, or a plan needs figures that are not at hand.
    """
    hardware = device_here() if config.cache.capture.workers.gpus else this_machine()
    if hardware is None:
        return None
    try:
        return _expected(config, hardware)
    except KdscaleError:
        return None
    except Exception:  # Of a plan, which is for the display: no run is to end for it.
        log.warning("no plan could be made of the run", exc_info=True)
        return None


def _expected(config: RunConfig, hardware: Hardware) -> Expectation:
    inputs = read_inputs(config, hardware)
    inputs = inputs.with_measured(find(open_store(config.output), hardware.name))
    workers = {stage: workers_of(stage, config).count for stage in ON_WORKERS}
    stages = ("prepare", *ON_WORKERS)
    return Expectation(
        hardware=hardware.name,
        on_demand=hardware.on_demand,
        seconds={stage: seconds_of(stage, inputs).total for stage in stages},
        devices={"prepare": 1, **workers},
        assumptions=assumptions(inputs),
    )


def device_here() -> Hardware | None:
    """Return this machine's GPU as the table has it; None where it has none that is known."""
    return gpu_hardware(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
