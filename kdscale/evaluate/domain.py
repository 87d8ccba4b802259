"""All models on one evaluation set, shared out over ranks, and their scores.

Documents whose class is not known are not scored. A classifier's logits are few: all of them are
kept on every rank.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from kdscale.data.rows.prepared import Prepared
from kdscale.distributed.rank import Rank
from kdscale.evaluate.classification import (
    classification_intervals,
    classification_metrics,
    fit_temperature,
)
from kdscale.evaluate.disagreements import Disagreements
from kdscale.evaluate.intervals import draw_counts, gap_interval, language_model_intervals
from kdscale.evaluate.metrics import BYTES, TOKENS, LanguageModelSums
from kdscale.evaluate.schema import DomainMetrics, Interval, ModelResults
from kdscale.evaluate.temperature import FITTED_ON
from kdscale.models.forward import row_tensors, target_logits
from kdscale.models.hf_folder import ModelReference
from kdscale.train.batches import split_micro_batches


class DomainScores:
    """Scores of each model (teacher first, if there is one) on the evaluation set `domain`.

    `temperatures` are the models' by name, None where they are not known before; `data` is what
    each model reads, the same sequences in its own tokens.
    """

    def __init__(
        self,
        temperatures: Mapping[str, float | None],
        data: Mapping[str, Prepared],
        domain: str,
        worker: Rank,
    ) -> None:
        prepared = data["teacher"]
        self._data = data
        self._tables = {each: each.split(domain) for each in dict.fromkeys(data.values())}
        self.order = self._tables[prepared].labelled()
        rows, device = len(self.order), worker.device
        self.sums = {n: LanguageModelSums(device, rows, t) for n, t in temperatures.items()}
        self.disagreements = Disagreements(device)
        self.logits: dict[str, torch.Tensor] = {}
        self.labels = torch.zeros(rows, dtype=torch.int64, device=device)
        if prepared.classes:
            size = prepared.outputs
            self.logits = {n: torch.zeros(rows, size, device=device) for n in temperatures}

    @property
    def tokens_differ(self) -> bool:
        """True if not all models read the same tokens."""
        return len(self._tables) > 1

    @torch.no_grad()
    def measure(
        self, models: dict[str, torch.nn.Module], worker: Rank, micro_batch_size: int
    ) -> None:
        """Run all models over all sequences, and add up over ranks. Collective."""
        places = np.arange(len(self.order))
        for part, valid in split_micro_batches(
            places, micro_batch_size, worker.rank, worker.world_size
        ):
            self._add(models, part, valid, worker)
            worker.beat("a batch of evaluation")
        for total in self.sums.values():
            total.load(worker.all_reduce_sum(total.state()))
        self.disagreements.gather(worker)
        if self.logits:
            worker.all_reduce_sum(self.labels)
        for logits in self.logits.values():
            worker.all_reduce_sum(logits)

    def _add(
        self,
        models: dict[str, torch.nn.Module],
        part: np.ndarray,
        valid: np.ndarray,
        worker: Rank,
    ) -> None:
        """Add the rows at `part` [B] of the order, of which the `valid` [B] count."""
        taken = {data: table.take(self.order[part]) for data, table in self._tables.items()}
        batches = {data: row_tensors(rows, worker.device, valid) for data, rows in taken.items()}
        teacher_log_probs = None
        for name, model in models.items():
            data = self._data[name]
            batch = batches[data]
            labels = batch.pick(batch.labels)
            row = torch.from_numpy(part).to(worker.device)
            at = batch.pick(row[:, None].expand_as(batch.mask))
            logits = target_logits(model, batch, data.outputs).float()
            # Position by position only where the positions are the same.
            beside = teacher_log_probs if data is self._data["teacher"] else None
            kl = self.sums[name].update(logits, labels, beside, at)
            if name == "student" and beside is not None:
                self.disagreements.add(batch, at, kl, beside, logits)
            byte_counts = taken[data].byte_counts
            for place, byte_count in zip(part[valid], byte_counts[valid], strict=True):
                self.sums[name].add_bytes(float(byte_count), int(place))
            if self.logits:
                self.labels[at] = labels
                self.logits[name][at] = logits
            if name == "teacher":
                teacher_log_probs = torch.log_softmax(logits, dim=-1)
            del logits  # the largest thing in memory, before the next model's are made


def summarise(
    domains: Mapping[str, DomainScores], references: Mapping[str, ModelReference]
) -> dict[str, Any]:
    """Return {"models": {name: ModelResults}, "gap_intervals": {domain: [lower, upper]}}."""
    models: dict[str, ModelResults] = {
        name: {"parameters": reference.parameters, "domains": {}}
        for name, reference in references.items()
    }
    gaps: dict[str, Interval] = {}
    for domain, scores in domains.items():
        counts = draw_counts(len(scores.order))
        by_row = {name: sums.by_row for name, sums in scores.sums.items()}
        gaps[domain] = gap_interval(counts, by_row, BYTES if scores.tokens_differ else TOKENS)
        for name, sums in scores.sums.items():
            found: dict[str, Any] = dict(sums.metrics())
            intervals = language_model_intervals(counts, by_row[name])
            found["intervals"] = intervals
            if scores.logits:
                # The bytes of a text are no measure of how well it is classified, and there are
                # hardly more classes than the likeliest of them.
                found["bits_per_byte"] = None
                for figure in ("bits_per_byte", "overlap_top10"):
                    intervals.pop(figure, None)
                found.pop("overlap_top10", None)
                _classify(found, name, scores, domains[FITTED_ON], counts)
            models[name]["domains"][domain] = cast(DomainMetrics, found)
    return {"models": models, "gap_intervals": gaps}


def _classify(
    found: dict[str, Any], name: str, scores: DomainScores, fitted: DomainScores, counts: np.ndarray
) -> None:
    """Add a classifier's figures, in place."""
    logits, labels = scores.logits[name].cpu().numpy(), scores.labels.cpu().numpy()
    temperature = fit_temperature(
        fitted.logits[name].cpu().numpy().astype(np.float64), fitted.labels.cpu().numpy()
    )
    found |= classification_metrics(logits, labels, temperature)
    found["intervals"] |= classification_intervals(counts, logits, labels)
