"""Config of the hardware that a plan is made for: speed, memory, links and prices of a device."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from kdscale.config.base import Config
from kdscale.config.text import read_text
from kdscale.errors import KdscaleError


class Hardware(Config):
    """One device (a GPU, or a core of a CPU) as a plan sees it."""

    name: str
    """Name in tables."""

    kind: Literal["gpu", "cpu"] = "gpu"
    """A GPU computes in bfloat16 with its own memory; a core of a CPU in float32, in the
    machine's."""

    flops: float = Field(gt=0)
    """Peak floating-point operations a second: dense bfloat16 of a GPU, float32 of a core."""

    memory_gib: float = Field(gt=0)
    """Memory of a GPU; of a CPU, that of the whole machine."""

    host_memory_gib: float = Field(gt=0)
    """The machine's memory for each of its devices; of a CPU, that of the whole machine."""

    bandwidth_gb_s: float = Field(gt=0)
    """Bandwidth of the device's memory, GB/s."""

    float32_flops: float | None = Field(default=None, gt=0)
    """Peak float32 operations a second of a GPU outside of its matrix units; only models of single
    kernels read it."""

    devices_per_node: int = Field(gt=0)
    """GPUs, or cores, of a machine."""

    link_gb_s: float = Field(gt=0)
    """Between devices of a machine, GB/s for each device and direction."""

    network_gb_s: float = Field(gt=0)
    """Between machines, GB/s for each device and direction."""

    on_demand: float = Field(ge=0)
    """US dollars a device and hour."""

    spot: float = Field(ge=0)
    """The same for a device that may be taken away."""

    interruptions: float = Field(default=0.05, ge=0)
    """How often a spot machine is assumed to be taken away, times an hour."""

    source: str
    """Source of the figures, and date of the prices."""

    watts: float | None = Field(default=None, gt=0)
    """Thermal design power of the device, W: a report's energy where none was measured."""

    watts_source: str | None = None
    """Source of that."""

    forward_utilisation: float = Field(default=0.40, gt=0, le=1)
    """Share of `flops` that a forward is assumed to reach where nothing was measured."""

    training_utilisation: float = Field(default=0.35, gt=0, le=1)
    """The same for forward and backward."""

    reserve: float = Field(default=0.08, ge=0, lt=1)
    """Share of the memory that a plan leaves free: the driver's own, and what fragments."""


def load_hardware(path: str | Path) -> Hardware:
    """Return the hardware in a YAML file. Raises KdscaleError where it is invalid."""
    text = read_text(
        path, "hardware file", "Give the path of a YAML file, or a name of the built-in table."
    )
    try:
        return Hardware.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise KdscaleError(
            f"{path} describes no hardware: {error}",
            "Correct the fields named; docs/plan.md shows a whole file.",
        ) from error
