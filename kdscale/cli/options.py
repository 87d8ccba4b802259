"""Arguments and options that several commands share."""

import math
from typing import Annotated

import typer

from kdscale.errors import KdscaleError
from kdscale.run.stage_names import STAGES
from kdscale.utils.duration import parse_duration


def _stage(name: str | None) -> str | None:
    if name is not None and name not in STAGES:
        raise typer.BadParameter(f"{name!r} is no stage; the stages are {', '.join(STAGES)}.")
    return name


def _stages() -> list[str]:
    return list(STAGES)


def hardware_names() -> list[str]:
    """Return the devices that a plan has figures of."""
    from kdscale.plan.hardware import TABLE

    return ["cpu", *(row.name for row in TABLE)]


def _fields(incomplete: str) -> list[str]:
    """Return the fields whose names begin as what was typed."""
    from kdscale.config import RunConfig
    from kdscale.config.suggest import field_paths

    names = dict.fromkeys(".".join(path) for path in field_paths(RunConfig))
    return [f"{name}=" for name in names if name.startswith(incomplete)]


def finite(value: float | None) -> float | None:
    """Refuse infinity and NaN, which pass any bounds of an option."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value


def duration(text: str) -> int:
    """Return the seconds of a length of time; refuse anything else with the option's name."""
    try:
        return parse_duration(text)
    except KdscaleError as error:
        raise typer.BadParameter(f"{error.problem} {error.fix}") from error


def check_stages(only: str | None, start: str | None, until: str | None = None) -> None:
    """Refuse `--only` together with the others, and `--until` before `--from`."""
    if only is not None and (start is not None or until is not None):
        raise typer.BadParameter("--only runs one stage, the others several: give one of them.")
    if start is not None and until is not None and STAGES.index(until) < STAGES.index(start):
        raise typer.BadParameter(f"--until {until} comes before --from {start}.")


def check_timeout(timeout: int | None, follow: bool) -> None:
    """Refuse `--timeout` where nothing is waited for."""
    if timeout is not None and not follow:
        raise typer.BadParameter("--timeout needs --follow: nothing is waited for.")


Config = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=C",
        help="Set a field of the config; may be repeated.",
        autocompletion=_fields,
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="STAGE",
        callback=_stage,
        autocompletion=_stages,
        help="Run this stage only.",
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="STAGE",
        callback=_stage,
        autocompletion=_stages,
        help="Run this stage and those after.",
    ),
]
Until = Annotated[
    str | None,
    typer.Option(
        "--until",
        metavar="STAGE",
        callback=_stage,
        autocompletion=_stages,
        help="Run no stage after this one.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Run complete stages again.")]
WaitForLease = Annotated[
    float | None,
    typer.Option(
        "--wait-for-lease",
        metavar="SECONDS",
        min=0,
        callback=finite,
        help="Seconds to wait if another process holds this run. Default: until it is clear "
        "whether that process is alive.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Dashboard of the cluster, http://HEAD:8265. Default: where the job was submitted to "
        "from here, else RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this machine's cluster.",
    ),
]


def _known_jobs() -> list[str]:
    from kdscale.submit.records import known_jobs

    return known_jobs()


JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="Id that `kdscale submit` printed; or the output or config of a run that was "
        "submitted from here.",
        autocompletion=_known_jobs,
    ),
]
BackendName = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="Where jobs run, ray or kuberay. Default: where the job was submitted to from here, "
        "else ray.",
        autocompletion=lambda: ["ray", "kuberay"],
    ),
]
Kube = Annotated[
    str | None,
    typer.Option(
        "--kube",
        metavar="FILE",
        help="The Kubernetes cluster, for kuberay. Default: the example, which `kdscale init "
        "--cluster kuberay` writes.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Timeout = Annotated[
    int | None,
    typer.Option(
        "--timeout",
        parser=duration,
        metavar="TIME",
        help="Wait no longer than this (30s, 5m, 2h), then exit with code 6.",
    ),
]
