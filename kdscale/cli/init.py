"""`kdscale init`: a config to start from, for one's own models and data, or an example."""

from pathlib import Path
from typing import Annotated

import typer

from kdscale.cli import options
from kdscale.errors import KdscaleError


def _examples() -> list[str]:
    from kdscale.share import EXAMPLES

    return list(EXAMPLES)


def _clusters() -> list[str]:
    from kdscale.share import CLUSTERS

    return list(CLUSTERS)


File = Annotated[
    str | None,
    typer.Argument(metavar="PATH", help="File to write.", show_default="kdscale.yaml"),
]
Teacher = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Folder, URL or hub name of the teacher."),
]
Student = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="The student's. Default: every second layer of the teacher."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Text, JSONL, CSV or Parquet: a file, folder, glob or URL. Kind and fields are "
        "detected.",
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        metavar="TASK",
        help="causal-lm, masked-lm or sequence-classification. Default: the models'.",
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(metavar="N", help="GPUs, 0 for none. Default: the fewest that hold the models."),
]
HardwareName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Hardware of the run, as for `kdscale plan`. Default: this machine.",
        autocompletion=options.hardware_names,
    ),
]
Output = Annotated[
    str | None, typer.Option(metavar="URL", help="Output of the run: a folder or URL.")
]
Full = Annotated[bool, typer.Option("--full", help="Write every field, with its meaning.")]
Example = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Write an example: quickstart, llama-70b, ...",
        autocompletion=_examples,
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Write a cluster's file: aws, gcp, kuberay, local or on_premise.",
        autocompletion=_clusters,
    ),
]


def init(
    path: File = None,
    teacher: Teacher = None,
    student: Student = None,
    data: Data = None,
    task: TaskName = None,
    gpus: Gpus = None,
    hardware: HardwareName = None,
    output: Output = None,
    full: Full = False,
    example: Example = None,
    cluster: Cluster = None,
) -> None:
    """Write a config for a teacher, a student and data, with sizes that fit; it runs as it is.

    Without any of them: a config that trains a small teacher on two CPUs in minutes.
    """
    own = (teacher, student, data, task, gpus, hardware, output)
    is_own = any(value is not None for value in own)
    if sum((is_own, full, example is not None, cluster is not None)) > 1:
        raise typer.BadParameter("--full, --example, --cluster and a config of your own: give one.")
    _refuse_existing(path)
    notes: list[str] = []
    if cluster is not None or example is not None:
        target, text = _shipped(path, example, cluster)
    elif is_own:
        target = Path(path or "kdscale.yaml")
        text, notes = _own(teacher, student, data, task, gpus, hardware, output)
    else:
        from kdscale.config.starter import starter_yaml

        target, text = Path(path or "kdscale.yaml"), starter_yaml(full)
    _write(target, text)
    for note in notes:
        typer.echo(note, err=True)
    use = "" if cluster is not None else f" Run it with: kdscale run {target}"
    typer.echo(f"Wrote {target}.{use}", err=True)


def _own(
    teacher: str | None,
    student: str | None,
    data: str | None,
    task: str | None,
    gpus: int | None,
    hardware: str | None,
    output: str | None,
) -> tuple[str, list[str]]:
    """Return the config of a user's own models and data, and notes on it."""
    if teacher is None or data is None:
        raise KdscaleError(
            f"A config of your own needs a teacher and data; --"
            f"{'teacher' if teacher is None else 'data'} is missing.",
            "Give for example --teacher models/teacher --data corpus.jsonl. `kdscale init` alone "
            "writes a config that trains a small teacher.",
        )
    from kdscale.start import Request, start_config
    from kdscale.start.models import check_task

    request = Request(teacher, data, student, check_task(task), gpus, output, hardware)
    started = start_config(request)
    return started.text, started.notes


def _shipped(path: str | None, example: str | None, cluster: str | None) -> tuple[Path, str]:
    """Return the file to write and the text of an example config or a cluster's file."""
    from difflib import get_close_matches

    from kdscale.share import CLUSTERS, EXAMPLES

    known, name = (EXAMPLES, example) if cluster is None else (CLUSTERS, cluster)
    if name not in known:
        near = get_close_matches(str(name), known, 1)
        hint = f": did you mean {near[0]}?" if near else "."
        kind = "example" if cluster is None else "cluster's file"
        raise KdscaleError(f"There is no {kind} {name!r}{hint}", f"Give one of {', '.join(known)}.")
    source = known[str(name)]
    return Path(path or source.name), source.read_text(encoding="utf-8")


def _refuse_existing(path: str | None) -> None:
    """Raise KdscaleError for a file that exists, before the seconds that a config takes."""
    if path is not None and Path(path).exists():
        raise KdscaleError(f"{path} already exists.", "Give another path, or move that file away.")


def _write(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
        if target.suffix == ".sh":
            target.chmod(0o755)
    except FileExistsError as error:
        raise KdscaleError(
            f"{target} already exists.", "Give another path, or move that file away."
        ) from error
    except OSError as error:
        raise KdscaleError(
            f"{target} cannot be written: {error.strerror}.", "Give a path that you may write to."
        ) from error
