"""Run the teacher over the corpus and fill the cache.

Work shards are fixed by the cache's plan; rank r takes the missing shards r, r + world size, and so
on. The ranks of a sharded teacher must run equally many forwards, so there a rank that has no shard
in a round, or a shorter one, runs dummies. Encoding and upload (encoder.py) go on beside the
forwards.
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from kdscale.cache.commit.manifest import manifest_key, publish
from kdscale.cache.commit.writer import ShardWriter, committed_shards
from kdscale.cache.format.records import Generation
from kdscale.config import RunConfig
from kdscale.data.rows.order import EvenRows
from kdscale.data.rows.prepared import Prepared, RowTable, open_prepared
from kdscale.distributed.rank import GracefulStopError, Rank, current_rank
from kdscale.models.forward import row_tensors, target_logits
from kdscale.models.hf_folder import ModelReference
from kdscale.models.load import check_vocabulary
from kdscale.models.sequence_check import check_sequences
from kdscale.models.sharded import load_teacher, parameters_held
from kdscale.store import PutIfAbsent, Store
from kdscale.teacher.device_timer import DeviceClock
from kdscale.teacher.encoder import Encoder, Forward
from kdscale.tracking import prometheus as metrics
from kdscale.tracking.trackers import Tracker, open_tracker
from kdscale.train.batches import sequence_spec
from kdscale.train.throughput import peak_memory
from kdscale.types import Rows


@dataclass(frozen=True)
class CaptureJob:
    """What a capture worker needs; the same on every rank."""

    config: RunConfig
    output: Store
    prepared: Store
    cache: Store
    teacher: ModelReference
    identity: dict[str, Any]
    plan: Generation
    selected: np.ndarray | EvenRows  # training rows to capture, in the plan's order
    put_if_absent: PutIfAbsent  # what decides between attempts, see kdscale.workers.commit_actor

    def run(self) -> None:
        """Capture on this rank."""
        capture(self)


def capture(spec: CaptureJob) -> None:
    """Load the teacher on this rank, with all others, and capture what is missing."""
    worker = current_rank()
    prepared = open_prepared(spec.prepared)
    zero = spec.config.cache.capture.zero
    model = load_teacher(spec.teacher.local(), worker, zero, spec.teacher.revision)
    bare = getattr(model, "module", model)
    check_vocabulary(bare.config, prepared.vocab_size, "teacher")
    held, total = parameters_held(model)
    worker.say(f"teacher holds {held:,} of {total:,} parameters here")
    size = spec.config.cache.capture.micro_batch_size
    kind = sequence_spec(spec.config, prepared, size)
    check_sequences(model, partial(target_logits, model, vocab_size=prepared.outputs), kind)
    fill_cache(spec, worker, model, prepared)


def fill_cache(spec: CaptureJob, worker: Rank, model: torch.nn.Module, prepared: Prepared) -> None:
    """Capture what is missing with the loaded teacher, and publish. All ranks call it together."""
    # Rank 0 reads what is missing, so that all ranks share out the same list.
    missing = worker.broadcast(_missing_shards(spec) if worker.rank == 0 else None)
    worker.say(f"{len(missing)} of {len(spec.plan.shards)} shards to capture")
    tracker = _open_tracker(spec, worker.attempt, len(missing)) if worker.rank == 0 else None
    writer = ShardWriter(spec.cache, spec.identity, spec.plan, spec.put_if_absent)
    encoder = Encoder(
        spec.config.cache,
        writer.commit,
        vocab_size=prepared.outputs,
        seed=spec.config.seed,
        device=worker.device,
    )
    runner = _Runner(spec, worker, model, prepared.training("cache"), prepared.outputs, encoder)
    runner.run(missing, tracker)
    # Also where all ranks wait for the last one's commits.
    if worker.any_rank(runner.leaves):
        worker.say("left after the shards in flight")
        if tracker is not None:
            tracker.finish()
        raise GracefulStopError
    if tracker is not None:
        # The manifest comes last: it is what makes the cache exist.
        manifest = publish(spec.cache, spec.plan, spec.put_if_absent)
        url = f"{spec.cache.url}/{manifest_key(manifest.version)}"
        tracker.log_reference(f"{spec.config.name}-cache", "logit-cache", url, spec.identity)
        tracker.finish()
    worker.barrier()


class _Runner:
    """The teacher's side: forwards, one shard a rank and round."""

    def __init__(
        self,
        spec: CaptureJob,
        worker: Rank,
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
        self._size = spec.config.cache.capture.micro_batch_size
        self._lockstep = spec.config.cache.capture.zero.stage == 3
        self._clock = DeviceClock(worker.device)
        self._rows_before = self._rows_done = 0  # in earlier attempts, in this one
        self.leaves = False
        """Whether it ended before all shards were through, because this rank was asked to leave."""

    def run(self, missing: list[int], tracker: Tracker | None) -> None:
        """Capture the `missing` shards of all ranks."""
        world = self._worker.world_size
        done = len(self._spec.plan.shards) - len(missing)
        self._rows_before = self._spec.plan.rows - sum(map(self._rows_of, missing))
        started = time.perf_counter()
        self._report(0)
        with self._encoder:
            for first in range(0, len(missing), world):
                self.leaves = self._asked_to_leave()
                if self.leaves:
                    break
                round_shards = missing[first : first + world]
                self._run_round(round_shards)
                metrics.count_to("kdscale_queue_wait_seconds", self._encoder.progress.waiting)
                self._rows_done += sum(map(self._rows_of, round_shards))
                done += len(round_shards)
                # The last line waits for the commits.
                if tracker is not None and first + world < len(missing):
                    self._log(tracker, done, time.perf_counter() - started)
        if tracker is not None and missing:
            self._log(tracker, done, time.perf_counter() - started)

    def _asked_to_leave(self) -> bool:
        """Ranks in lockstep leave together; others each when it learns of it."""
        asked = self._worker.stop_requested()
        return self._worker.any_rank(asked) if self._lockstep else asked

    def _run_round(self, round_shards: list[int]) -> None:
        """This rank's shard, and in lockstep as many forwards as the longest shard takes."""
        rank = self._worker.rank
        shard = round_shards[rank] if rank < len(round_shards) else None
        rows = self._rows_to_run(shard)
        longest = max(map(self._rows_of, round_shards)) if self._lockstep else len(rows)
        for start in range(0, longest, self._size):
            part = rows.take(np.arange(start, min(start + self._size, len(rows))))
            if shard is not None and len(part):
                last = start + self._size >= len(rows)
                # Not held by a name here: logits are the largest thing in memory.
                self._encoder.submit(Forward(shard, part, self._forward(part), last))
            else:
                self._forward(self._table.take(self._spec.selected[:1]))
            self._worker.beat(f"rows {start} to {start + self._size} of shard {shard}")
            self._report(sum(min(self._rows_of(u), start + self._size) for u in round_shards))

    def _rows_to_run(self, shard: int | None) -> Rows:
        """The rows of a shard; none if there is no shard."""
        positions = range(0) if shard is None else self._spec.plan.shards[shard]
        return self._table.take(self._spec.selected[positions.start : positions.stop])

    @torch.no_grad()
    def _forward(self, rows: Rows) -> torch.Tensor:
        """Logits [P, V] of the targets."""
        with self._clock.running():
            batch = row_tensors(rows, self._worker.device)
            return target_logits(self._model, batch, self._vocab_size)

    def _rows_of(self, shard: int) -> int:
        return len(self._spec.plan.shards[shard])

    def _report(self, rows_of_round: int) -> None:
        """Tell the driver how many rows all ranks have run, counting equal progress for each."""
        if self._worker.rank == 0:
            rows = self._rows_done + rows_of_round
            self._worker.report(
                self._rows_before + rows,
                self._spec.plan.rows,
                tokens=rows * self._spec.config.data.seq_len,
                note="rows",
            )

    def _log(self, tracker: Tracker, done: int, seconds: float) -> None:
        """Tokens are those of all ranks, counting equal progress; the rest is this rank's own.

        `outside_forward_share` is what capture costs over bare forwards. Encoding on a GPU and
        uploads everywhere go on meanwhile: their shares are how busy they are, not what they cost.
        """
        length = self._spec.config.data.seq_len
        progress = self._encoder.progress
        tokens, committed = self._rows_done * length, progress.committed_rows * length
        shown = {
            "tokens_per_second": tokens / seconds,
            "outside_forward_share": 1 - self._clock.seconds / seconds,
            "encode_share": progress.encoding / seconds,
            "upload_share": progress.committing / seconds,
            "queue_wait_seconds": progress.waiting,
            "bytes_committed": progress.committed_bytes,
            "bytes_per_token": progress.committed_bytes / committed if committed else math.nan,
            "memory_gib": peak_memory(self._worker.device) / 2**30,
        }
        tracker.log(done, tokens, shown)


def _missing_shards(spec: CaptureJob) -> list[int]:
    done = committed_shards(spec.cache, spec.plan)
    return [shard for shard in range(len(spec.plan.shards)) if shard not in done]


def _open_tracker(spec: CaptureJob, attempt: int, missing: int) -> Tracker:
    config = spec.config
    return open_tracker(
        config.tracking,
        run=config.name,
        stage="cache",
        store=spec.output,
        resolved=config.model_dump(mode="json"),
        # Shards count as steps: what earlier attempts logged of committed ones stays.
        start_step=len(spec.plan.shards) - missing,
        attempt=attempt,
    )
