"""Source of an export: a complete model of a run, with its card, tokenizer and validation data.

Everything is found in the run's output, as a report finds it: neither the corpus nor the config's
file has to be at hand, and a run that was moved or copied since is found where it is.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from kdscale.data.rows.prepared import Prepared
from kdscale.errors import KdscaleError
from kdscale.evaluate.results import RESULTS_KEY
from kdscale.models.hf_folder import ModelReference
from kdscale.report.card import model_card
from kdscale.report.facts import TaskLabels, task_labels
from kdscale.report.load import ReportData, load_report_data
from kdscale.run.finished_run import FinishedRun
from kdscale.store import Store, open_store

ModelName = Literal["student", "baseline", "teacher"]


@dataclass(frozen=True)
class Source:
    """A model of a run that is complete and evaluated."""

    run: ReportData
    name: ModelName
    reference: ModelReference
    prepared: Prepared
    card: str  # README.md

    @cached_property
    def weights(self) -> str:
        """Argument of `from_pretrained`; fetched if need be."""
        return self.reference.local()

    @property
    def words(self) -> TaskLabels:
        """Labels of its task's results."""
        return task_labels(self.run.results)


def find_source(uri: str, name: ModelName) -> Source:
    """Find the model `name` of the run whose output is at `uri`.

    Raises KdscaleError where there is no run, where one of the stages that the model and its card
    come from is not complete, or where the run has no such model.
    """
    finished = FinishedRun(open_store(uri))
    output = finished.output
    made_by = "teacher" if name == "teacher" else "distill"
    for stage in (made_by, "evaluate"):
        _check_complete(finished, stage)
    if not output.exists(RESULTS_KEY):
        raise _incomplete(output, "evaluate", "has no results")
    run = load_report_data(output)
    card = model_card(run.results, name, run.config)
    reference = finished.model(name)
    if reference is None:
        raise _incomplete(output, made_by, f"has no complete {name}")
    return Source(run, name, reference, finished.data_of(name), card)


def _check_complete(run: FinishedRun, stage: str) -> None:
    """Refuse a stage that is running or has ended early.

    One that is not recorded may have been found complete: its output decides.
    """
    state = run.record["stages"].get(stage, {}).get("state", "complete")
    if state != "complete":
        raise _incomplete(run.output, stage, f"is not complete: its stage {stage!r} is {state}")


def _incomplete(output: Store, stage: str, what: str) -> KdscaleError:
    return KdscaleError(
        f"The run in {output} {what}.", f"Finish it: kdscale run CONFIG --from {stage}."
    )
