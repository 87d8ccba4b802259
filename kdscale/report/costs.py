"""Costs of a run: device hours, money and energy of each stage, beside those of its plan.

Device hours are a stage's wall time times its devices (GPUs, or cores of a CPU), busy or not, as a
cloud bills them. Energy is the devices' thermal design power times their hours: about the most that
the devices alone take.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdscale.evaluate.schema import Devices, Results
from kdscale.report import formatting as units
from kdscale.report.tables import Table


@dataclass(frozen=True)
class Cost:
    """Cost of a stage, or of all; None is not known."""

    stage: str
    seconds: float
    device_hours: float
    dollars: float | None
    kwh: float | None
    planned_seconds: float | None
    planned_device_hours: float | None

    @property
    def of_plan(self) -> float | None:
        """Device hours over those that the plan foresees."""
        return self.device_hours / self.planned_device_hours if self.planned_device_hours else None


def stage_costs(results: Results) -> list[Cost]:
    """Return the cost of each stage that took time, in order; none without known devices."""
    devices = results.get("devices")
    if devices is None:
        return []
    seconds = {n: found for n, found in results["seconds"].items() if 0 < found < math.inf}
    return [_cost(name, found, devices) for name, found in seconds.items()]


def total_cost(costs: Sequence[Cost]) -> Cost:
    """Return the sum of the stages; the plan's over all stages where it has any of them."""
    planned = [each for each in costs if each.planned_seconds is not None]
    return Cost(
        stage="all",
        seconds=sum(each.seconds for each in costs),
        device_hours=sum(each.device_hours for each in costs),
        dollars=_sum([each.dollars for each in costs]),
        kwh=_sum([each.kwh for each in costs]),
        planned_seconds=_sum([each.planned_seconds for each in planned]),
        planned_device_hours=_sum([each.planned_device_hours for each in planned]),
    )


def _cost(name: str, seconds: float, devices: Devices) -> Cost:
    count = devices["devices"].get(name, 1.0)  # the driver's own work occupies one
    hours = count * seconds / 3600
    price, watts = devices["price_hour"], devices["watts"]
    planned = devices["planned"].get(name)
    return Cost(
        stage=name,
        seconds=seconds,
        device_hours=hours,
        dollars=None if price is None else price * hours,
        kwh=None if watts is None else watts * hours / 1000,
        planned_seconds=planned["seconds"] if planned else None,
        planned_device_hours=planned["device_hours"] if planned else None,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    """Return the sum; None of nothing, or where one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def cost_table(results: Results) -> Table | None:
    """Return a row a stage, and one of all; None where the devices are not known."""
    costs = stage_costs(results)
    if not costs:
        return None
    costs = [*costs, total_cost(costs)]
    header = ["Stage", "Time", "Time planned", "Device hours", "Hours planned", "Of the plan"]
    shown = {
        "Money": any(each.dollars is not None for each in costs),
        "Energy": any(each.kwh is not None for each in costs),
    }
    rows = []
    for each in costs:
        row = [
            each.stage,
            units.duration(each.seconds),
            units.NONE if each.planned_seconds is None else units.duration(each.planned_seconds),
            units.significant(each.device_hours),
            units.significant(each.planned_device_hours),
            units.NONE if each.of_plan is None else f"{units.number(each.of_plan, 2)}×",
        ]
        row += [units.dollars(each.dollars)] if shown["Money"] else []
        row += [units.energy(each.kwh)] if shown["Energy"] else []
        rows.append(row)
    header += [name for name, is_shown in shown.items() if is_shown]
    return Table("Cost of the stages, and what kdscale plan foresees", header, rows, name="cost")


def cost_sentences(results: Results) -> list[str]:
    """Return what the run cost in all, and what the figures rest on."""
    costs, devices = stage_costs(results), results.get("devices")
    if not costs or devices is None:
        return []
    total, unit = total_cost(costs), "core hours" if devices["kind"] == "cpu" else "GPU hours"
    parts = [f"{units.significant(total.device_hours)} {unit}"]
    parts += [units.dollars(total.dollars)] if total.dollars is not None else []
    parts += [units.energy(total.kwh)] if total.kwh is not None else []
    said = f"The run took {units.duration(total.seconds)}: {', '.join(parts)}."
    if total.of_plan is not None:
        said += f" That is {units.number(total.of_plan, 2)} times what kdscale plan foresees."
    notes = [_money_note(devices), _energy_note(devices)]
    return [said, " ".join(note for note in notes if note), *_plan_note(devices)]


def _money_note(devices: Devices) -> str:
    if devices["price_hour"] is None:
        return f"No price is known of {_named(devices)}."
    return f"Money: ${devices['price_hour']:,.2f} a device and hour, {devices['price_source']}."


def _energy_note(devices: Devices) -> str:
    if devices["watts"] is None:
        return "Energy is not known."
    power = f"{devices['watts']:g} W a device, {devices['watts_source']}"
    return f"Energy: thermal design power ({power}) times device hours, not measured."


def _plan_note(devices: Devices) -> list[str]:
    return [f"The plan: {' '.join(devices['assumptions'])}"] if devices["assumptions"] else []


def _named(devices: Devices) -> str:
    if devices["name"] is None:
        return "these devices"
    return "this machine's cores" if devices["kind"] == "cpu" else devices["name"]


def cost_figures(results: Results) -> dict[str, Any]:
    """Return the same as numbers: a stage each, and all."""
    costs = stage_costs(results)
    found = [*costs, total_cost(costs)] if costs else []
    return {each.stage: {**asdict(each), "of_plan": each.of_plan} for each in found}
