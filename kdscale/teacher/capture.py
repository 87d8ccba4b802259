"""Run the teacher over the corpus and fill the cache.

Work units are fixed by the cache's plan. In each round every rank takes one missing unit; ranks
that have none, or a shorter one, run dummy forwards, because the ranks of a sharded teacher must
run equally many. Encoding and upload run in a thread behind a bounded queue while the teacher goes
on.
"""

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdscale.cache.codecs import Codec, make_codec
from kdscale.cache.codecs.noise import uniforms
from kdscale.cache.container import RowStats
from kdscale.cache.manifest import manifest_key, publish
from kdscale.cache.plan import Plan
from kdscale.cache.writer import UnitWriter, committed_units
from kdscale.config import RunConfig
from kdscale.data.prepared import RowTable, open_prepared
from kdscale.data.rows import concatenate
from kdscale.models.build import check_vocabulary
from kdscale.models.folder import ModelReference
from kdscale.models.forward import (
    check_isolation,
    compute_logits,
    next_token_labels,
    row_tensors,
)
from kdscale.models.sharded import load_teacher, parameters_held
from kdscale.store import Store
from kdscale.tracking import Tracker, open_tracker
from kdscale.types import Rows
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
    encoder = Encoder(spec, prepared.vocab_size, worker.device)
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
        encoder: "Encoder",
    ) -> None:
        self._spec = spec
        self._worker = worker
        self._model = model
        self._table = table
        self._vocab_size = vocab_size
        self._encoder = encoder
        self._size = spec.config.cache.capture.micro_batch_rows

    def run(self, missing: list[int], tracker: Tracker | None) -> None:
        """Capture the `missing` units of all ranks."""
        world = self._worker.world_size
        done_before = len(self._spec.plan.units) - len(missing)
        tokens, started, in_forward = 0, time.perf_counter(), 0.0
        with self._encoder:
            for first in range(0, len(missing), world):
                round_units = missing[first : first + world]
                mine = self._worker.rank
                unit = round_units[mine] if mine < len(round_units) else None
                in_forward += self._run_round(unit, round_units)
                done = done_before + first + len(round_units)
                tokens += sum(self._rows_of(u) for u in round_units) * self._table_length
                if tracker is not None:
                    seconds = time.perf_counter() - started
                    metrics = {
                        "tokens_per_second": tokens / seconds,
                        "outside_forward_share": 1 - in_forward / seconds,
                    }
                    tracker.log(done, tokens, metrics)
                    self._worker.report(
                        done, len(self._spec.plan.units), tokens=tokens, note="units"
                    )

    @property
    def _table_length(self) -> int:
        return self._spec.config.data.row_length

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
            if unit is not None and batch is not dummy:
                assert rows is not None
                last = part[-1] == len(rows) - 1
                self._encoder.submit(Forward(unit, batch, logits, bool(last)))
        return seconds


@dataclass(frozen=True)
class Forward:
    """Logits [B, T, V] of consecutive `rows` of a unit; `last` closes the unit."""

    unit: int
    rows: Rows
    logits: torch.Tensor
    last: bool


@dataclass(frozen=True)
class _Encoded:
    rows: Rows
    payload: np.ndarray  # [B, T * bytes_per_position] uint8
    entropy: np.ndarray  # [B] float32
    nll: np.ndarray  # [B] float32


class Encoder:
    """A thread that encodes forwards in order and commits each unit when its last one is through.

    `submit` blocks while the queue is full: back-pressure, and not memory growth. An error in the
    thread is raised from the next `submit`, or when the block ends.
    """

    def __init__(self, spec: CaptureJob, vocab_size: int, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._codec: Codec = make_codec(spec.config.cache.codec, vocab_size)
        self._writer = UnitWriter(
            spec.cache, spec.identity, rows_per_block=spec.config.cache.rows_per_block
        )
        self._queue: queue.Queue[Forward | None] = queue.Queue(
            maxsize=spec.config.cache.capture.queue_batches
        )
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)

    def __enter__(self) -> "Encoder":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def submit(self, forward: Forward) -> None:
        """Hand over one forward; waits while `queue_batches` are pending."""
        if self._error is not None:
            raise self._error
        self._queue.put(forward)

    def _run(self) -> None:
        parts: list[_Encoded] = []
        for forward in iter(self._queue.get, None):
            # After an error the queue is still drained, so that nobody waits in `submit` for ever.
            if self._error is not None:
                continue
            try:
                parts.append(self._encode(forward))
                if forward.last:
                    self._commit(forward.unit, parts)
                    parts = []
            except BaseException as error:  # handed to the main thread
                self._error = error

    @torch.no_grad()
    def _encode(self, forward: Forward) -> _Encoded:
        temperature = self._spec.config.cache.temperature
        ids, _, mask = row_tensors(forward.rows, self._device)
        batch, length = ids.shape
        logits = forward.logits[mask].float() / temperature
        sample_ids = torch.from_numpy(forward.rows.sample_ids).to(self._device)
        noise = uniforms(self._spec.config.seed, sample_ids, length)[mask]
        payload = torch.zeros(
            (batch, length, self._codec.bytes_per_position), dtype=torch.uint8, device=self._device
        )
        # Positions that are no targets stay zero bytes: no loss ever looks at them.
        payload[mask] = self._codec.encode(logits, noise)
        log_probs = torch.log_softmax(logits, dim=-1)
        entropy = -torch.where(log_probs > -torch.inf, log_probs.exp() * log_probs, 0.0).sum(-1)
        labels = next_token_labels(ids)[mask]
        nll = -log_probs.gather(-1, labels[:, None])[:, 0]
        return _Encoded(
            forward.rows,
            payload.reshape(batch, -1).cpu().numpy(),
            _row_means(entropy, mask),
            _row_means(nll, mask),
        )

    def _commit(self, unit: int, parts: list[_Encoded]) -> None:
        rows = concatenate([part.rows for part in parts], self._spec.config.data.row_length)
        stats = RowStats(
            sample_ids=rows.sample_ids,
            entropy=np.concatenate([part.entropy for part in parts]),
            nll=np.concatenate([part.nll for part in parts]),
            length=rows.loss_mask.sum(axis=1).astype(np.int32),
        )
        payload = np.concatenate([part.payload for part in parts])
        self._writer.commit(unit, rows, payload, stats)


def _row_means(values: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """Mean [B] float32 over each row's targets of `values` [P]; 0 for a row without any."""
    sums = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    sums[mask] = values
    means = sums.sum(dim=1) / mask.sum(dim=1).clamp_min(1)
    return means.cpu().numpy().astype(np.float32)


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
