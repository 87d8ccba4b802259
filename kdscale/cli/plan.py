"""`kdscale plan`: what a run will take, before anything starts."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from kdscale.cli import options

if TYPE_CHECKING:
    from kdscale.plan.calibration import Calibration
    from kdscale.plan.inputs import PlanInputs


HardwareName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A GPU of the plan's table (H200, H100, A100-80, L4, ...), cpu (this machine), or a "
        "YAML file. Default: cpu where the workers have no GPU, else H100.",
        autocompletion=options.hardware_names,
    ),
]
Tokens = Annotated[
    float | None,
    typer.Option(
        min=1,
        metavar="N",
        callback=options.finite,
        help="Tokens of training text, where it is not at hand.",
    ),
]
TeacherShape = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="A config.json of the teacher's shape to plan with."),
]
Mfu = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1,
        metavar="SHARE",
        callback=options.finite,
        help="Share of the devices' peak that models reach, where you know it.",
    ),
]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Measure speeds here first, for about a minute.")
]


def plan(
    config: options.Config,
    overrides: options.Overrides = None,
    hardware: HardwareName = None,
    tokens: Tokens = None,
    teacher: TeacherShape = None,
    mfu: Mfu = None,
    calibrate: Calibrate = False,
    as_json: options.AsJson = False,
) -> None:
    """Estimate tokens, FLOPs, time, money, memory and bytes of a run, and whether it fits.

    Nothing starts but the measurement of --calibrate. Exit code 2 for a config that cannot fit.
    """
    from kdscale.config import load_config

    if calibrate and mfu is not None:
        raise typer.BadParameter("--calibrate measures what --mfu gives: use one of them.")
    resolved = load_config(config, overrides or ())
    from kdscale.plan.hardware import find_hardware
    from kdscale.plan.inputs import read_inputs
    from kdscale.plan.plan import make_plan
    from kdscale.plan.render import render
    from kdscale.preflight import PreflightOptions, preflight
    from kdscale.run.artifacts import resolve_paths
    from kdscale.utils.text_table import terminal_width

    resolved = resolve_paths(resolved)
    name = hardware or ("H100" if resolved.cache.capture.workers.gpus else "cpu")
    chosen = find_hardware(name)
    elsewhere = tokens is not None or teacher is not None
    for note in preflight(resolved, options=PreflightOptions(elsewhere, tokens, teacher)).notes:
        typer.echo(f"note: {note}", err=True)
    inputs = read_inputs(resolved, chosen, tokens=tokens, teacher_shape=teacher)
    if mfu is not None:
        inputs = inputs.with_mfu(mfu)
    elif calibrate:
        inputs = inputs.with_measured(_measure(inputs))
    else:
        # With --tokens nothing remote is looked at: a plan of a cluster that is out of reach.
        inputs = inputs.with_measured(_find_measured(inputs, near_only=tokens is not None))
    found = make_plan(inputs)
    typer.echo(json.dumps(found.as_dict()) if as_json else render(found, terminal_width()))


def _measure(inputs: "PlanInputs") -> "Calibration":
    from kdscale.plan.calibrate import calibrate

    return calibrate(inputs, say=lambda line: typer.echo(line, err=True))


def _find_measured(inputs: "PlanInputs", near_only: bool) -> "Calibration | None":
    """Return what an earlier calibration measured; `near_only` looks at no remote store."""
    from kdscale.plan.calibration import find
    from kdscale.store import open_store

    store = open_store(inputs.config.output)
    is_near = not near_only or store.local_path() is not None
    return find(store if is_near else None, inputs.hardware.name)
