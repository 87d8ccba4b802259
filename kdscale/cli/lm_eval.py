"""`kdscale lm-eval`: tasks of lm-evaluation-harness on the models of a finished run."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from kdscale.cli.show import aligned

Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="Output of a run: a path or URL.")]
Tasks = Annotated[
    str,
    typer.Option(
        metavar="A,B", help="Tasks of lm-eval, or YAML files. By default those without network."
    ),
]
Models = Annotated[
    str, typer.Option(metavar="A,B", help="Models of the run; all that it has by default.")
]
OtherModels = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FOLDER", help="Another Hugging Face folder or hub name; repeatable."
    ),
]
TaskFolders = Annotated[
    list[Path] | None,
    typer.Option(exists=True, metavar="FOLDER", help="Folder of task files; repeatable."),
]
EvaluationSet = Annotated[
    str, typer.Option(metavar="SET", help="Evaluation set that the held-out tasks ask about.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="First documents of each task only.")]
FewShot = Annotated[int | None, typer.Option(min=0, help="Examples before each question.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Sequences of one forward.")]


def lm_eval(
    output: Output,
    tasks: Tasks = "",
    models: Models = "",
    model: OtherModels = None,
    include_path: TaskFolders = None,
    on: EvaluationSet = "validation",
    limit: Limit = None,
    few_shot: FewShot = None,
    batch_size: BatchSize = 8,
) -> None:
    """Run lm-eval's tasks on a run's teacher, student and baseline, here and without a cluster.

    Scores go to results.json, the report, the model cards and W&B. The tasks heldout_* are made of
    the run's held-out sequences and need no network.
    """
    from transformers.utils.logging import disable_progress_bar

    from kdscale.evaluate.harness import (
        HarnessOptions,
        check_installed,
        named_folders,
        score_run,
    )
    from kdscale.evaluate.heldout import task_names
    from kdscale.report import write_model_card, write_report
    from kdscale.report.tables import harness_table
    from kdscale.run.finished_run import FinishedRun
    from kdscale.store import open_store

    check_installed()
    disable_progress_bar()
    run = FinishedRun(open_store(output))
    folders = named_folders(run, _names(models) or run.models(), model or ())
    with tempfile.TemporaryDirectory(prefix="kdscale-lm-eval-") as scratch:
        options = HarnessOptions(
            tasks=_names(tasks) or task_names(),
            folders=[Path(scratch), *(include_path or ())],
            limit=limit,
            few_shot=few_shot,
            batch_size=batch_size,
        )
        results = score_run(run, folders, options, on, Path(scratch))
    write_report(run.output)
    for name in ("student", "baseline"):
        if name in results["models"]:
            write_model_card(run.output, name)
    typer.echo(aligned(harness_table(results)))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
