"""What is exported: a complete model of a run, with its card, its tokenizer and rows to check on.

Everything is found in the run's output, as a report finds it: neither the corpus nor the config's
file has to be at hand, and a run that was moved or copied since is found where it is.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.errors import KdscaleError
from kdscale.evaluate.results import RESULTS_KEY
from kdscale.models.hf_folder import ModelReference, read_marker
from kdscale.report.card import model_card
from kdscale.report.facts import TaskLabels, task_labels
from kdscale.report.load import ReportData, load_report_data
from kdscale.run.record import RUN_KEY
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
        """What `from_pretrained` takes here; fetched if need be."""
        return self.reference.local()

    @property
    def words(self) -> TaskLabels:
        """What its task's results are called."""
        return task_labels(self.run.results)


def find_source(uri: str, name: ModelName) -> Source:
    """The model `name` of the run whose output is at `uri`.

    Raises KdscaleError where there is no run, where one of the stages that the model and its card
    come from is not complete, or where the run has no such model.
    """
    output = open_store(uri)
    record = _record(output)
    made_by = "teacher" if name == "teacher" else "distill"
    for stage in (made_by, "evaluate"):
        _check_complete(output, record, stage)
    if not output.exists(RESULTS_KEY):
        raise _incomplete(output, "evaluate", "has no results")
    run = load_report_data(output)
    card = model_card(run.results, name, run.config)
    base = run.setting("base")
    origin = output if base is None else open_store(base)
    reference = _reference((origin if name == "teacher" else output).child(name))
    if reference is None:
        raise _incomplete(output, made_by, f"has no complete {name}")
    made = record if base is None else _record(origin)
    prepared = made["stages"].get("prepare", {}).get("fingerprint")
    if prepared is None:
        raise _incomplete(origin, "prepare", "names no prepared data")
    return Source(run, name, reference, open_prepared(origin.child(f"prepared/{prepared}")), card)


def _record(output: Store) -> dict[str, Any]:
    if not output.exists(RUN_KEY):
        raise KdscaleError(
            f"There is no run in {output}: it has no {RUN_KEY}.",
            "Give the `output` of a run, a path or a URL.",
        )
    found: dict[str, Any] = json.loads(output.get(RUN_KEY))
    return found


def _check_complete(output: Store, record: dict[str, Any], stage: str) -> None:
    """Refuse a stage that is under way or has ended early. One that is not recorded may have been
    found complete: what it made says so."""
    state = record["stages"].get(stage, {}).get("state", "complete")
    if state != "complete":
        raise _incomplete(output, stage, f"is not complete: its stage {stage!r} is {state}")


def _incomplete(output: Store, stage: str, what: str) -> KdscaleError:
    return KdscaleError(
        f"The run in {output} {what}.", f"Finish it: kdscale run CONFIG --from {stage}."
    )


def _reference(store: Store) -> ModelReference | None:
    """The model that is complete in `store`; its weights are there, unless they were referred to.

    The marker says where they were written, which may be another place than where they are now.
    """
    found = read_marker(store)
    if found is not None and any(key.endswith(".safetensors") for key in store.list()):
        return replace(found, source=store.url, revision=None)
    return found
