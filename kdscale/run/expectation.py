"""`plan.json`: the seconds that each stage of a run was expected to take, and a device's price.

The driver writes it as it begins, so that whoever looks at the run knows what is still to come.
"""

from pydantic import Field, ValidationError

from kdscale.config.base import Config
from kdscale.store import Store

PLAN_KEY = "plan.json"


class Expectation(Config):
    """Figures of `kdscale plan` for a run on the devices that it has."""

    hardware: str
    """Name of the device in the plan's table."""

    on_demand: float = Field(ge=0)
    """US dollars a device and hour; 0 for one without a price."""

    seconds: dict[str, float]
    """Wall seconds by stage; the report is not planned."""

    devices: dict[str, int]
    """Devices that a stage occupies."""

    assumptions: list[str]
    """Sentences on the inputs of the plan."""


def read_expectation(output: Store) -> Expectation | None:
    """Return what was expected of the run in `output`; None where nothing was."""
    try:
        return Expectation.model_validate_json(output.get(PLAN_KEY))
    except (FileNotFoundError, ValidationError):  # none, or of another version
        return None


def write_expectation(output: Store, found: Expectation) -> None:
    """Write what is expected of the run in `output`."""
    output.put(PLAN_KEY, found.model_dump_json(indent=1).encode())
