"""lm-eval on a finished run: which models, on which tasks, and where the scores go."""

import os
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from kdscale.errors import KdscaleError
from kdscale.evaluate.harness import HarnessOptions, merge, run_tasks
from kdscale.evaluate.heldout import task_names, write_tasks
from kdscale.evaluate.results import HarnessTask, Results, read_results, write_results
from kdscale.run.finished_run import FinishedRun
from kdscale.tracking.wandb_run import open_wandb_run

_RUNS_OWN = ("teacher", "student", "baseline")


def named_folders(run: FinishedRun, models: Sequence[str], more: Sequence[str]) -> dict[str, str]:
    """Folders by name: `models` of the run, those of its config's evaluate.models, and `more`, each
    NAME=FOLDER. Raises KdscaleError for a model that the run has not and a malformed text."""
    known = run.config.evaluate.models
    found = {n: known[n] if n in known else run.model_folder(n) for n in models}
    for text in more:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder or name in _RUNS_OWN:
            raise KdscaleError(
                f"{text!r} names no other model.",
                "Write --model NAME=FOLDER, with a name other than teacher, student and baseline.",
            )
        found[name] = os.path.expanduser(folder)
    return found


def score_run(
    run: FinishedRun, folders: dict[str, str], options: HarnessOptions, on: str, scratch: Path
) -> Results:
    """Run the tasks and put their scores into the run's results, which are returned.

    Held-out tasks ask about the evaluation set `on` and are written to `scratch`, one of the
    options' folders. Raises KdscaleError for a run that is not evaluated, and as `run_tasks`.
    """
    results = read_results(run.output)
    if set(options.tasks) & set(task_names()):
        prepared = run.prepared()
        tokenizer = AutoTokenizer.from_pretrained(
            prepared.tokenizer_folder(), trust_remote_code=False
        )
        write_tasks(prepared, on, tokenizer, scratch)
    scores = run_tasks(folders, options)
    results["lm_eval"] = merge(results.get("lm_eval", {}), scores)
    write_results(run.output, results)
    _track(run, scores)
    return results


def _track(run: FinishedRun, scores: dict[str, HarnessTask]) -> None:
    """The scores as a run of W&B, where the run's config wants one."""
    config = run.config
    gallery = open_wandb_run(config, "lm-eval", run.output)
    rows = [
        (task, metric, model, score["value"], score["stderr"])
        for task, entry in scores.items()
        for model, found in entry["scores"].items()
        for metric, score in found.items()
    ]
    gallery.summary({f"{task}/{metric}/{model}": value for task, metric, model, value, _ in rows})
    gallery.log_table("lm_eval", ["task", "metric", "model", "value", "stderr"], rows)
    gallery.finish()
