"""A whole config as YAML, checked as a run is before it starts."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from kdscale.config import parse_config
from kdscale.config.hardware import Hardware
from kdscale.errors import KdscaleError
from kdscale.plan.hardware import find_hardware, gpu_hardware
from kdscale.preflight import PreflightOptions, preflight
from kdscale.start.draft import Settings, draft, nested
from kdscale.start.request import Request
from kdscale.start.sizes import Sized, choose_sizes

_WIDTH = 100


@dataclass(frozen=True)
class Started:
    """A config's text, and what the user should know of it."""

    text: str
    notes: list[str]


def start_config(request: Request) -> Started:
    """Return a short config of a run for the request, which runs as it is.

    Raises KdscaleError for models or data that are not there, do not go together or do not fit.
    """
    hardware = _hardware(request)
    settings, notes = draft(request, hardware.kind)
    sized = choose_sizes(settings, hardware, request.gpus)
    text = _yaml(sized)
    is_elsewhere = request.hardware is not None and hardware.kind == "gpu"
    found = preflight(parse_config(text), options=PreflightOptions(runs_elsewhere=is_elsewhere))
    return Started(text, [*notes, *found.notes, _summary(sized)])


def _hardware(request: Request) -> Hardware:
    """Return the hardware that is named; else this machine's GPU, or its cores."""
    if request.gpus is not None and request.gpus < 0:
        raise KdscaleError(f"--gpus is {request.gpus}.", "Give 0 for none, or a number of GPUs.")
    named = None if request.hardware is None else find_hardware(request.hardware)
    if named is not None and (named.kind == "gpu") == (request.gpus != 0):
        return named
    if named is not None:
        raise KdscaleError(
            f"--gpus {request.gpus} and --hardware {named.name} contradict each other.",
            "Leave out one of them.",
        )
    if request.gpus == 0 or (request.gpus is None and not torch.cuda.is_available()):
        return find_hardware("cpu")
    if not torch.cuda.is_available():
        return find_hardware("H100")  # GPUs elsewhere, as for `kdscale plan`
    here = torch.cuda.get_device_name()
    if (found := gpu_hardware(here)) is None:
        raise KdscaleError(
            f"This machine's GPU, {here}, is not in the table of `kdscale plan`.",
            "Give --hardware: a name of the table, or a YAML file of the device's figures.",
        )
    return found


def _yaml(sized: Sized) -> str:
    """Return the settings as YAML, a section after the other."""
    tree = nested(_grouped(sized.settings))
    parts = []
    for name, value in tree.items():
        flow = None if isinstance(value, dict) else False  # sections without sections on one line
        text = yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=flow, width=_WIDTH)
        parts.append(f"\n{text}" if isinstance(value, dict) else text)
    return (
        f"# Written by `kdscale init`; sizes are those of `kdscale plan` for {_where(sized)}.\n"
        "# `kdscale init --full` lists every field with its meaning.\n" + "".join(parts)
    )


def _grouped(settings: Settings) -> Settings:
    """Return the settings with those of a section together, in the order of the stages."""
    sections = ("name", "output", "task", "data", "teacher", "cache", "distill", "evaluate")

    def place(item: tuple[str, Any]) -> int:
        return sections.index(item[0].partition(".")[0])

    return dict(sorted(settings.items(), key=place))


def _where(sized: Sized) -> str:
    hardware = sized.inputs.hardware
    if hardware.kind == "cpu":
        return f"{hardware.devices_per_node} cores"
    return f"{sized.workers} {hardware.name}"


def _summary(sized: Sized) -> str:
    """Return a sentence on rows, steps and time."""
    tokens, training = sized.inputs.tokens, sized.inputs.config.distill.training
    hours = sized.seconds / 3600
    minutes = math.ceil(60 * hours)
    time = f"{hours:.1f} hours" if hours >= 1 else f"{minutes} minute{'s' * (minutes > 1)}"
    price = sized.inputs.hardware.on_demand * sized.workers * hours
    money = f", {price:,.2f} dollars on demand" if price else ""
    of_all = f" of about {tokens.rows:,}" if sized.is_cut else ""
    return (
        f"{tokens.captured_rows:,}{of_all} sequences of {tokens.seq_len:,} tokens, "
        f"{training.steps:,} steps of {training.global_batch_size:,}: about {time} on "
        f"{_where(sized)}{money}, as `kdscale plan` estimates."
    )
