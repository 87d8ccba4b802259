"""Capture: run the teacher over the corpus and fill the cache.

Shards are fixed by the plan of the cache's generation; rank r takes the missing shards r,
r + world size, and so on. The ranks that hold a sharded teacher together must run equally many
forwards, so there a rank that has no shard in a round, or a shorter one, runs dummies; groups of
them need not keep in step. Encoding and upload (encoder.py) run beside the forwards.
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kdscale.cache.commit.manifest import manifest_key, publish
from kdscale.cache.commit.writer import ShardWriter, committed_shards
from kdscale.cache.format.records import Generation
from kdscale.config import RunConfig
from kdscale.data.rows.order import EvenRows
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.distributed.groups import RankGroup
from kdscale.distributed.rank import GracefulStopError, Rank, current_rank
from kdscale.models.attention import set_attention
from kdscale.models.forward import row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.models.hf_folder import ModelReference
from kdscale.models.load import load_config_of, load_model
from kdscale.models.release import release
from kdscale.models.sharded import parameters_held, teacher_group
from kdscale.store import PutIfAbsent, Store
from kdscale.teacher.encoder import Encoder, Forward
from kdscale.teacher.states import place_captured, states_of, whole_head
from kdscale.tracking import prometheus as metrics
from kdscale.tracking.trackers import Tracker, open_tracker
from kdscale.train.batches import sequence_spec
from kdscale.train.throughput import DeviceTimer, peak_memory
from kdscale.types import Rows


@dataclass(frozen=True)
class CaptureJob:
    """Capture of a teacher's logits, as each worker does it."""

    config: RunConfig
    output: Store
    prepared: Store
    cache: Store
    teacher: ModelReference
    identity: dict[str, Any]
    plan: Generation
    selected: np.ndarray | EvenRows  # training sequences to capture, in the plan's order
    put_if_absent: PutIfAbsent  # what decides between attempts, see kdscale.workers.commit_actor

    def load(self) -> PreTrainedModel:
        """Return the teacher in the dtype of this rank, with the kernel of attention asked for."""
        worker, config = current_rank(), self.config
        model = load_model(self.teacher.local(), worker.dtype, self.teacher.revision)
        return set_attention(model, config.teacher.attention, worker.device, packs=config.packs)

    def run(self) -> None:
        """Load the teacher on this rank, with all others, and capture what is missing."""
        worker, prepared = current_rank(), open_prepared(self.prepared)
        capture = self.config.cache.capture
        group = self.group(worker)
        model = place_captured(self.load, worker, capture.zero, prepared, group)
        held, total = parameters_held(model)
        worker.say(f"teacher holds {held:,} of {total:,} parameters here")
        spec = sequence_spec(self.config, prepared, capture.micro_batch_size)
        with torch.no_grad():
            model(ModelWithHead.check_sequences, spec)
        fill_cache(self, worker, model, prepared, group)
        release(model)

    def group(self, worker: Rank) -> RankGroup:
        """Return the ranks that hold the teacher together with this one. Collective."""
        capture, teacher = self.config.cache.capture, self.teacher
        if capture.zero.stage == 0:
            return RankGroup.alone(worker)
        shape = partial(load_config_of, teacher.local(), teacher.revision)
        return teacher_group(capture.teacher_group, capture.workers, worker, shape)


def fill_cache(
    job: CaptureJob,
    worker: Rank,
    model: torch.nn.Module,
    prepared: Prepared,
    group: RankGroup,
) -> None:
    """Capture what is missing with the teacher of place_captured, and publish. Collective.

    `group` are the ranks that hold the teacher together. Raises GracefulStopError, after the shards
    in flight, where the group was asked to stop.
    """
    # Rank 0 reads what is missing, so that all ranks share out the same list.
    missing = worker.broadcast(_missing_shards(job) if worker.rank == 0 else None)
    worker.say(f"{len(missing)} of {len(job.plan.shards)} shards to capture")
    tracker = _open_tracker(job, worker.attempt, len(missing)) if worker.rank == 0 else None
    writer = ShardWriter(job.cache, job.identity, job.plan, job.put_if_absent)
    encoder = Encoder(
        job.config.cache,
        writer.commit,
        head=whole_head(model),
        seed=job.config.seed,
        device=worker.device,
    )
    loop = _CaptureLoop(job, worker, model, prepared, encoder, group)
    loop.run(missing, tracker)
    # Also where all ranks wait for the last one's commits.
    if worker.any_rank(loop.stopped):
        worker.say("stopped on request, after the shards in flight")
        if tracker is not None:
            tracker.finish()
        raise GracefulStopError
    if tracker is not None:
        # The manifest comes last: it is what makes the cache exist.
        manifest = publish(job.cache, job.plan, job.put_if_absent)
        url = f"{job.cache.url}/{manifest_key(manifest.version)}"
        tracker.log_reference(f"{job.config.name}-cache", "logit-cache", url, job.identity)
        tracker.finish()
    worker.barrier()


class _CaptureLoop:
    """Forwards of the teacher on this rank, one shard a round."""

    def __init__(
        self,
        job: CaptureJob,
        worker: Rank,
        model: torch.nn.Module,
        prepared: Prepared,
        encoder: Encoder,
        group: RankGroup,
    ) -> None:
        self._job, self._worker, self._model, self._encoder = job, worker, model, encoder
        self._group = group
        self._table = prepared.training("cache")
        self._size = job.config.cache.capture.micro_batch_size
        self._timer = DeviceTimer(worker.device)
        self._rows_before = self._rows_done = 0  # in earlier attempts, in this one
        self.stopped = False
        """True if it ended before all shards were through, as this rank was asked to stop."""

    def run(self, missing: list[int], tracker: Tracker | None) -> None:
        """Capture the `missing` shards of all ranks."""
        world = self._worker.world_size
        done = len(self._job.plan.shards) - len(missing)
        self._rows_before = self._job.plan.rows - sum(map(self._rows_of, missing))
        started = time.perf_counter()
        self._report(0)
        with self._encoder:
            for first in range(0, len(missing), world):
                self.stopped = self._is_to_stop()
                if self.stopped:
                    break
                shards = missing[first : first + world]
                self._run_round(shards)
                metrics.count_to("kdscale_queue_wait_seconds", self._encoder.progress.waiting)
                self._rows_done += sum(map(self._rows_of, shards))
                done += len(shards)
                # The last line waits for the commits.
                if tracker is not None and first + world < len(missing):
                    self._log(tracker, done, time.perf_counter() - started)
        if tracker is not None and missing:
            self._log(tracker, done, time.perf_counter() - started)

    def _is_to_stop(self) -> bool:
        """Return whether to stop: a group's ranks together, each group when it learns of it."""
        return self._group.any_rank(self._worker.stop_requested(), self._worker.device)

    def _run_round(self, shards: list[int]) -> None:
        """Run this rank's shard, and as many forwards as the longest one of its group takes."""
        rank = self._worker.rank
        shard = shards[rank] if rank < len(shards) else None
        positions = range(0) if shard is None else self._job.plan.shards[shard]
        rows = self._table.take(self._job.selected[positions.start : positions.stop])
        of_group = shards[self._group.ranks.start : self._group.ranks.stop]
        longest = max(map(self._rows_of, of_group), default=0)
        for start in range(0, longest, self._size):
            part = rows.take(np.arange(start, min(start + self._size, len(rows))))
            if shard is not None and len(part):
                last = start + self._size >= len(rows)
                # Not held by a name here, for the encoder to free.
                self._encoder.submit(Forward(shard, part, self._forward(part), last))
            else:
                self._forward(self._table.take(self._job.selected[:1]))
            self._worker.beat(f"sequences {start} to {start + self._size} of shard {shard}")
            self._report(sum(min(self._rows_of(each), start + self._size) for each in shards))

    def _forward(self, rows: Rows) -> torch.Tensor:
        """Return the hidden states [P, D] at the targets."""
        with self._timer.running():
            return states_of(self._model, row_tensors(rows, self._worker.device))

    def _rows_of(self, shard: int) -> int:
        return len(self._job.plan.shards[shard])

    def _report(self, rows_of_round: int) -> None:
        """Report the sequences that all ranks have run, assuming equal progress of each."""
        if self._worker.rank == 0:
            rows, length = self._rows_done + rows_of_round, self._job.config.data.seq_len
            total = self._job.plan.rows
            self._worker.report(
                self._rows_before + rows, total, tokens=rows * length, note="sequences"
            )

    def _log(self, tracker: Tracker, done: int, seconds: float) -> None:
        """Log tokens of all ranks, assuming equal progress of each, and this rank's other figures.

        `outside_forward_share` is what capture costs over bare forwards, which have the head's
        products in them. Encoding on a GPU and uploads everywhere run meanwhile: their shares are
        how busy they are, not what they cost.
        """
        length = self._job.config.data.seq_len
        progress = self._encoder.progress
        tokens, committed = self._rows_done * length, progress.committed_rows * length
        shown = {
            "tokens_per_second": tokens / seconds,
            "outside_forward_share": 1 - (self._timer.seconds + progress.head) / seconds,
            "encode_share": progress.encoding / seconds,
            "upload_share": progress.committing / seconds,
            "queue_wait_seconds": progress.waiting,
            "bytes_committed": progress.committed_bytes,
            "bytes_per_token": progress.committed_bytes / committed if committed else math.nan,
            "memory_gib": peak_memory(self._worker.device) / 2**30,
        }
        tracker.log(done, tokens, shown)


def _missing_shards(job: CaptureJob) -> list[int]:
    done = committed_shards(job.cache, job.plan)
    return [shard for shard in range(len(job.plan.shards)) if shard not in done]


def _open_tracker(job: CaptureJob, attempt: int, missing: int) -> Tracker:
    config = job.config
    return open_tracker(
        config.tracking,
        run=config.name,
        stage="cache",
        store=job.output,
        resolved=config.model_dump(mode="json"),
        # Shards count as steps: what earlier attempts logged of committed ones stays.
        start_step=len(job.plan.shards) - missing,
        attempt=attempt,
    )
