"""The evaluate stage on a worker: teacher, student and control over every held-out domain.

The one place where teacher and students meet: agreement and KL compare them position by position.
The teacher may be sharded, so all ranks run equally many forwards; students are whole on each rank.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdscale.config import RunConfig
from kdscale.config.training import ZeroConfig
from kdscale.data.prepared import RowTable, open_prepared
from kdscale.evaluate.metrics import LanguageModelSums
from kdscale.evaluate.results import ModelResults, environment
from kdscale.models.folder import ModelReference
from kdscale.models.forward import compute_logits, next_token_labels, row_tensors
from kdscale.models.sharded import load_teacher
from kdscale.store import Store
from kdscale.train.batches import rank_rows, split_micro_batches
from kdscale.workers import Worker, current_worker

MEASURED_KEY = "evaluation.json"


@dataclass(frozen=True)
class EvaluateJob:
    """What an evaluation worker needs. `students` are by name: student, control."""

    config: RunConfig
    output: Store
    prepared: Store
    teacher: ModelReference
    students: dict[str, ModelReference]


def evaluate(job: dict[str, Any]) -> None:
    """A worker's loop. `job["evaluate"]` is an EvaluateJob; rank 0 writes `evaluation.json`:
    {"models": {name: ModelResults}, "versions": {...}, "hardware": {...}}."""
    spec: EvaluateJob = job["evaluate"]
    worker = current_worker()
    config = spec.config.evaluate
    prepared = open_prepared(spec.prepared)
    zero = ZeroConfig(stage=config.teacher_zero)
    models = {"teacher": load_teacher(spec.teacher.local(), worker, zero, spec.teacher.revision)}
    for name, reference in spec.students.items():
        models[name] = load_teacher(reference.local(), worker, ZeroConfig(stage=0))
    domains = [name for name in prepared.splits if name != "train"]
    results: dict[str, ModelResults] = {
        "teacher": {"parameters": spec.teacher.parameters, "domains": {}},
        **{n: {"parameters": r.parameters, "domains": {}} for n, r in spec.students.items()},
    }
    for index, domain in enumerate(domains):
        worker.leave_if_asked()
        table = prepared.split(domain)
        sums = evaluate_domain(models, table, worker, config.micro_batch_rows, prepared.vocab_size)
        for name, total in sums.items():
            results[name]["domains"][domain] = total.metrics()
        if worker.rank == 0:
            worker.report(index + 1, len(domains), note=domain)
    if worker.rank == 0:
        versions, hardware = environment()
        measured = {"models": results, "versions": versions, "hardware": hardware}
        spec.output.put(MEASURED_KEY, json.dumps(measured).encode())
    worker.barrier()


@torch.no_grad()
def evaluate_domain(
    models: dict[str, torch.nn.Module],
    table: RowTable,
    worker: Worker,
    micro_batch_rows: int,
    vocab_size: int,
) -> dict[str, LanguageModelSums]:
    """Sums of every model over all rows of `table`, added up over ranks. Collective.

    `models` has the teacher first; the others are compared with it.
    """
    sums = {name: LanguageModelSums(worker.device) for name in models}
    order = np.arange(len(table))
    mine = rank_rows(order, worker.rank, worker.world_size)
    parts = split_micro_batches(mine, order, micro_batch_rows, worker.world_size)
    for part, valid in parts:
        rows = table.take(part)
        ids, segments, mask = row_tensors(rows, worker.device)
        mask &= torch.from_numpy(valid).to(worker.device)[:, None]
        labels = next_token_labels(ids)[mask]
        count_bytes = float(rows.byte_counts[valid].sum())
        teacher_log_probs = None
        for name, model in models.items():
            logits = compute_logits(model, ids, segments, vocab_size)[mask].float()
            sums[name].update(logits, labels, teacher_log_probs)
            sums[name].add_bytes(count_bytes)
            if name == "teacher":
                teacher_log_probs = torch.log_softmax(logits, dim=-1)
        worker.beat("a batch of evaluation")
    for total in sums.values():
        total.load(worker.all_reduce_sum(total.state()))
    return sums
