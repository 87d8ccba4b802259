"""Run the teacher over the corpus and fill the cache.

Work units are fixed by the cache's plan. In each round every rank takes one missing unit; ranks
that have none, or a shorter one, run dummy forwards, because the ranks of a sharded teacher must
run equally many. Encoding and upload (encoder.py) overlap the next forward.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdscale.cache.manifest import manifest_key, publish
from kdscale.cache.plan import Plan
from kdscale.cache.writer import committed_units
from kdscale.config import RunConfig
from kdscale.data.prepared import RowTable, open_prepared
from kdscale.models.build import check_vocabulary
from kdscale.models.folder import ModelReference
from kdscale.models.forward import (
    check_isolation,
    compute_logits,
    row_tensors,
)
from kdscale.models.sharded import load_teacher, parameters_held
from kdscale.store import Store
from kdscale.teacher.encoder import Encoder, Forward
from kdscale.tracking import Tracker, open_tracker
from kdscale.workers import Worker, current_worker


@dataclass(frozen=True)
class CaptureJob:
    """What a capture worker needs; the same on every rank."""

    config: RunConfig
    output: Store
    prepared: Store
    cache: Store
    teacher: ModelReference
    identity: dict[str, Any]
    plan: Plan
    selected: np.ndarray  # [rows] int64: training rows that the cache holds, in the plan's order


def capture(job: dict[str, Any]) -> None:
    """A worker's loop. `job["capture"]` is a CaptureJob."""
    spec: CaptureJob = job["capture"]
    worker = current_worker()
    config = spec.config.cache
    prepared = open_prepared(spec.prepared)
    model = load_teacher(spec.teacher.local(), worker, config.capture.zero, spec.teacher.revision)
    bare = getattr(model, "module", model)
    check_vocabulary(bare.config, prepared.vocab_size, "teacher")
    held, total = parameters_held(model)
    worker.say(f"teacher holds {held:,} of {total:,} parameters here")
    if spec.config.data.pack:
        check_isolation(model, prepared.vocab_size, worker.device)

    # Rank 0 reads what is missing, so that all ranks share out the same list.
    missing = worker.broadcast(_missing_units(spec) if worker.rank == 0 else None)
    worker.say(f"{len(missing)} of {len(spec.plan.units)} units to capture")
    tracker = _open_tracker(spec, worker.attempt, len(missing)) if worker.rank == 0 else None
    encoder = Encoder(
        config,
        spec.cache,
        spec.identity,
        vocab_size=prepared.vocab_size,
        seed=spec.config.seed,
        device=worker.device,
    )
    runner = _Runner(spec, worker, model, prepared.split("train"), prepared.vocab_size, encoder)
    runner.run(missing, tracker)
    worker.barrier()
    if tracker is not None:
        # The manifest comes last: it is what makes the cache exist.
        manifest = publish(spec.cache, spec.identity, spec.plan)
        url = f"{spec.cache.url}/{manifest_key(manifest.version)}"
        tracker.log_reference(f"{spec.config.name}-cache", "logit-cache", url, spec.identity)
        tracker.finish()
    worker.barrier()


class _Runner:
    """The teacher's side: forwards in lockstep, one unit a rank and round."""

    def __init__(
        self,
        spec: CaptureJob,
        worker: Worker,
        model: torch.nn.Module,
        table: RowTable,
        vocab_size: int,
        encoder: Encoder,
    ) -> None:
        self._spec = spec
        self._worker = worker
        self._model = model
        self._table = table
        self._vocab_size = vocab_size
        self._encoder = encoder
        self._size = spec.config.cache.capture.micro_batch_rows
        self._rows_before = self._rows_done = 0  # in earlier attempts, in this one

    def run(self, missing: list[int], tracker: Tracker | None) -> None:
        """Capture the `missing` units of all ranks."""
        world = self._worker.world_size
        done = len(self._spec.plan.units) - len(missing)
        self._rows_before = self._spec.plan.rows - sum(map(self._rows_of, missing))
        started, in_forward = time.perf_counter(), 0.0
        self._report(0)
        with self._encoder:
            for first in range(0, len(missing), world):
                round_units = missing[first : first + world]
                mine = self._worker.rank
                unit = round_units[mine] if mine < len(round_units) else None
                in_forward += self._run_round(unit, round_units)
                self._rows_done += sum(map(self._rows_of, round_units))
                done += len(round_units)
                if tracker is not None:
                    seconds = time.perf_counter() - started
                    tokens = self._rows_done * self._spec.config.data.row_length
                    metrics = {
                        "tokens_per_second": tokens / seconds,
                        "outside_forward_share": 1 - in_forward / seconds,
                    }
                    tracker.log(done, tokens, metrics)

    def _report(self, rows_of_round: int) -> None:
        """Tell the driver how many rows all ranks have run, counting equal progress for each."""
        if self._worker.rank == 0:
            rows = self._rows_done + rows_of_round
            self._worker.report(
                self._rows_before + rows,
                self._spec.plan.rows,
                tokens=rows * self._spec.config.data.row_length,
                note="rows",
            )

    def _rows_of(self, unit: int) -> int:
        return len(self._spec.plan.units[unit])

    def _run_round(self, unit: int | None, round_units: list[int]) -> float:
        """The same number of forwards on every rank; returns the seconds spent in them."""
        forwards = max(-(-self._rows_of(u) // self._size) for u in round_units)
        rows = None
        if unit is not None:
            positions = self._spec.plan.units[unit]
            rows = self._table.take(self._spec.selected[positions.start : positions.stop])
        dummy = self._table.take(self._spec.selected[:1])
        seconds = 0.0
        for index in range(forwards):
            part = np.arange(index * self._size, (index + 1) * self._size)
            part = part[part < (len(rows) if rows is not None else 0)]
            batch = rows.take(part) if rows is not None and len(part) else dummy
            before = time.perf_counter()
            ids, segments, _ = row_tensors(batch, self._worker.device)
            with torch.no_grad():
                logits = compute_logits(self._model, ids, segments, self._vocab_size)
            seconds += time.perf_counter() - before
            self._report(sum(min(self._rows_of(u), (index + 1) * self._size) for u in round_units))
            if unit is not None and batch is not dummy:
                assert rows is not None
                last = part[-1] == len(rows) - 1
                self._encoder.submit(Forward(unit, batch, logits, bool(last)))
        return seconds


def _missing_units(spec: CaptureJob) -> list[int]:
    done = committed_units(spec.cache)
    return [unit for unit in range(len(spec.plan.units)) if unit not in done]


def _open_tracker(spec: CaptureJob, attempt: int, missing: int) -> Tracker:
    config = spec.config
    return open_tracker(
        config.tracking,
        run=config.name,
        stage="cache",
        store=spec.output,
        resolved=config.model_dump(mode="json"),
        # Units count as steps: what earlier attempts logged of committed ones stays.
        start_step=len(spec.plan.units) - missing,
        attempt=attempt,
    )
