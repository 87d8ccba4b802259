"""Tasks of lm-eval on the models of a run, through its Python API: the only import of lm_eval.

EleutherAI's lm-evaluation-harness brings thousands of tasks and the ways that papers score them.
Most download their data; those of `heldout.py` and a user's YAML files need no network.
"""

import contextlib
import hashlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from kdscale.config.text import read_text
from kdscale.data.pretrained_tokenizer import load_tokenizer, vocabulary_size
from kdscale.distributed.rank import single_process_rank
from kdscale.errors import KdscaleError
from kdscale.evaluate.heldout import task_names, write_tasks
from kdscale.evaluate.results import read_results, write_results
from kdscale.evaluate.schema import HarnessScore, HarnessTask, Results
from kdscale.models.load import load_model
from kdscale.models.tasks import describe_task, task_of
from kdscale.run.finished_run import FinishedRun
from kdscale.tracking.wandb_run import open_wandb_run

_BOOTSTRAP_DRAWS = 1000
_RUNS_OWN = ("teacher", "student", "baseline", "before")


@dataclass(frozen=True)
class HarnessOptions:
    """Options of a run of tasks."""

    tasks: Sequence[str]
    """Names of lm-eval's registry, of a task in `folders`, or paths of YAML files."""

    folders: Sequence[Path] = ()
    """Folders of task files besides the registry."""

    limit: int | None = None
    """Only the first documents of each task."""

    batch_size: int = 8
    few_shot: int | None = None
    """Examples before each question; None: as the task says."""


def check_installed() -> None:
    """Raise KdscaleError if lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise KdscaleError(
            "lm-eval is not installed.", "Install the extra: pip install 'kdscale[eval]'."
        )


def named_folders(run: FinishedRun, models: Sequence[str], more: Sequence[str]) -> dict[str, str]:
    """Return folders by name.

    `models` are of the run or of its config's evaluate.models, each of `more` is NAME=FOLDER.
    Raises KdscaleError for a model that the run has not and for a malformed text.
    """
    known = run.config.evaluate.models
    found = {n: known[n] if n in known else run.model_folder(n) for n in models}
    for text in more:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder or name in _RUNS_OWN:
            raise KdscaleError(
                f"{text!r} names no other model.",
                "Write --model NAME=FOLDER, with a name other than teacher, student, baseline and "
                "before.",
            )
        found[name] = os.path.expanduser(folder)
    return found


def score_run(
    run: FinishedRun, folders: dict[str, str], options: HarnessOptions, on: str, scratch: Path
) -> Results:
    """Run the tasks, add their scores to the run's results, and return these.

    Held-out tasks are made of the evaluation set `on` and written to `scratch`, one of the options'
    folders. Raises KdscaleError for a run that is not evaluated, and as `run_tasks`.
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
    """Log the scores as a run of W&B, where the run's config wants one."""
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


def run_tasks(folders: Mapping[str, str], options: HarnessOptions) -> dict[str, HarnessTask]:
    """Score the models in Hugging Face `folders`, by name: by task, groups included.

    All run in this process, one after the other, on its GPU in bfloat16 where there is one and in
    float32 elsewhere. Raises KdscaleError where lm-eval is missing, a task is unknown or its data
    cannot be loaded, or a model is no causal language model.
    """
    check_installed()
    _check_files(options)
    with _quiet():
        manager = _manager(options)
        _check_tasks(manager, options.tasks)
        found: dict[str, HarnessTask] = {}
        for name, folder in folders.items():
            raw = _evaluate(folder, manager, options)
            for task, entry in _entries(raw, name, options.limit).items():
                scores = found.setdefault(task, entry)["scores"]
                scores.update(entry["scores"])
    return found


def merge(old: Mapping[str, HarnessTask], new: Mapping[str, HarnessTask]) -> dict[str, HarnessTask]:
    """Return `old` with the tasks of `new` in their place.

    Scores of models that only `old` has stay where the task is the very same.
    """
    merged = dict(old)
    for task, entry in new.items():
        before = old.get(task)
        if before is not None and _setting(before) == _setting(entry):
            entry = {**entry, "scores": before["scores"] | entry["scores"]}
        merged[task] = entry
    return merged


def _setting(entry: HarnessTask) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "scores"}


def _manager(options: HarnessOptions) -> Any:
    """Return the finder of tasks.

    It reads the folders given, and the registry only if needed: reading its thousands of files
    takes long.
    """
    from lm_eval.tasks import TaskManager

    folders = [str(folder) for folder in options.folders]
    alone = TaskManager(include_path=folders, include_defaults=False)
    if all(_is_known(alone, task) for task in options.tasks):
        return alone
    return TaskManager(include_path=folders)


def _is_known(manager: Any, task: str) -> bool:
    return task in manager.all_tasks or Path(task).is_file()


def _check_files(options: HarnessOptions) -> None:
    """Raise KdscaleError for a task's file that is no text: lm-eval ignores those in folders."""
    given = [Path(task) for task in options.tasks if Path(task).is_file()]
    found = [file for folder in options.folders for file in sorted(folder.rglob("*.yaml"))]
    for file in (*given, *found):
        read_text(file, "task file", "Make it readable.")


def _check_tasks(manager: Any, tasks: Sequence[str]) -> None:
    """Raise KdscaleError for a task that is unknown, or whose data cannot be loaded."""
    for task in tasks:
        if not _is_known(manager, task):
            raise KdscaleError(
                f"There is no task {task!r}.",
                f"Name one of {', '.join(task_names())}, which need no network, one of `lm-eval "
                "ls tasks`, or a YAML file; --include-path gives a folder of such files.",
            )
        try:
            manager.load([task])
        except Exception as error:  # whatever a task's own code and `datasets` raise
            text = str(error).splitlines()[0] if str(error) else ""
            raise KdscaleError(
                f"The task {task!r} cannot be loaded: {type(error).__name__}: {text}",
                f"Its data may need a network; {', '.join(task_names())} do not.",
            ) from error


def _evaluate(folder: str, manager: Any, options: HarnessOptions) -> dict[str, Any]:
    """Return lm-eval's results of one model."""
    import lm_eval

    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=_language_model(folder, options.batch_size),
        tasks=list(options.tasks),
        num_fewshot=options.few_shot,
        limit=options.limit,
        bootstrap_iters=_BOOTSTRAP_DRAWS,
        task_manager=manager,
        random_seed=0,
        numpy_random_seed=0,
        torch_random_seed=0,
        fewshot_random_seed=0,
    )
    return found


def _language_model(folder: str, batch_size: int) -> Any:
    """Return lm-eval's wrapper of the causal language model in `folder`."""
    from lm_eval.models.huggingface import HFLM

    worker = single_process_rank()
    model = load_model(folder, worker.dtype).to(worker.device).eval()
    if task_of(model.config) != "causal-lm":
        raise KdscaleError(
            f"{folder!r} is a {describe_task(task_of(model.config))}; lm-eval's tasks are for "
            "causal language models.",
            "Other models are measured by `kdscale evaluate`.",
        )
    tokenizer = load_tokenizer(folder)
    vocab_size = vocabulary_size(tokenizer.get_vocab())

    class Model(HFLM):
        """Model without the ids that pad the embedding, which no training has touched."""

        def _model_call(self, *inputs: Any, **more: Any) -> torch.Tensor:
            logits: torch.Tensor = super()._model_call(*inputs, **more)
            return logits[..., :vocab_size]

    return Model(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def _entries(raw: dict[str, Any], model: str, limit: int | None) -> dict[str, HarnessTask]:
    """Convert lm-eval's results of one model, task by task."""
    found: dict[str, HarnessTask] = {}
    for task, metrics in raw["results"].items():
        scores = dict(_scores(metrics))
        if not scores:
            continue
        found[task] = {
            "lm_eval": metadata.version("lm_eval"),
            "task_version": str(raw["versions"].get(task, "")),
            "task_hash": _hash(raw["samples"].get(task, [])),
            "few_shot": int(raw["n-shot"].get(task, 0)),
            "documents": int(raw["n-samples"].get(task, {}).get("effective", 0)),
            "limit": limit,
            "higher_is_better": {
                name: bool(better)
                for name, better in raw["higher_is_better"].get(task, {}).items()
                if better is not None
            },
            "scores": {model: scores},
        }
    return found


def _scores(metrics: Mapping[str, Any]) -> Iterator[tuple[str, HarnessScore]]:
    """Yield the figures from lm-eval's `acc,none` and `acc_stderr,none`."""
    for key, value in metrics.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = metrics.get(f"{name}_stderr,{kind}")
        yield (
            name if kind == "none" else f"{name} ({kind})",
            {
                "value": float(value),
                "stderr": float(error) if isinstance(error, int | float) else None,
            },
        )


def _hash(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return a hash of lm-eval's hashes of a task's documents, prompts and targets."""
    parts = (s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's prints off stdout and its remarks out of the log; progress is on stderr."""
    # Its bootstrap would fork a process that holds threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        log.setLevel(level)
