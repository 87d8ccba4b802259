"""The evaluate stage on a worker: all models over every held-out domain.

The one place where teacher and students meet: agreement and KL compare them position by position.
The teacher may be sharded, so all ranks run equally many forwards; others are whole on each rank.
"""

import json
from dataclasses import dataclass
from typing import Any

from kdscale.config import RunConfig
from kdscale.config.training import ZeroConfig
from kdscale.data.prepared import open_prepared
from kdscale.evaluate.domain import DomainScores, summarise
from kdscale.evaluate.results import environment
from kdscale.evaluate.temperature import fit_temperatures
from kdscale.models.folder import ModelReference
from kdscale.models.sharded import load_teacher
from kdscale.store import Store
from kdscale.workers import current_worker

MEASURED_KEY = "evaluation.json"


@dataclass(frozen=True)
class EvaluateJob:
    """What an evaluation worker needs. `models` are those besides the teacher by name: student,
    control, and the config's own."""

    config: RunConfig
    output: Store
    prepared: Store
    teacher: ModelReference
    models: dict[str, ModelReference]


def evaluate(job: dict[str, Any]) -> None:
    """A worker's loop. `job["evaluate"]` is an EvaluateJob; rank 0 writes `evaluation.json`:
    {"models": {name: ModelResults}, "gap_intervals", "task", "classes", "versions", "hardware"}."""
    spec: EvaluateJob = job["evaluate"]
    worker = current_worker()
    config = spec.config.evaluate
    prepared = open_prepared(spec.prepared)
    zero = ZeroConfig(stage=config.teacher_zero)
    models = {"teacher": load_teacher(spec.teacher.local(), worker, zero, spec.teacher.revision)}
    for name, reference in spec.models.items():
        whole = ZeroConfig(stage=0)
        models[name] = load_teacher(reference.local(), worker, whole, reference.revision)
    temperatures: dict[str, float | None] = dict.fromkeys(models)
    if not prepared.classes:
        # A classifier's logits are kept, and its temperature is fitted afterwards.
        fitted = fit_temperatures(models, prepared, worker, config.micro_batch_rows)
        temperatures.update(fitted)
    domains = prepared.evaluation_sets
    found: dict[str, DomainScores] = {}
    for index, domain in enumerate(domains):
        worker.leave_if_asked()
        scores = DomainScores(temperatures, prepared.split(domain), prepared, worker)
        scores.measure(models, worker, config.micro_batch_rows)
        found[domain] = scores
        if worker.rank == 0:
            worker.report(index + 1, len(domains), note=domain)
    if worker.rank == 0:
        measured = summarise(found, {"teacher": spec.teacher, **spec.models})
        measured |= {"task": spec.config.task, "classes": prepared.classes}
        measured["versions"], measured["hardware"] = environment()
        spec.output.put(MEASURED_KEY, json.dumps(measured).encode())
    worker.barrier()
