"""Encoder: from hidden states to committed shards, beside the teacher.

    submit -> encode -> (shard complete) -> commit

On a GPU a thread encodes, on a CUDA stream that waits for the forward it works on: the teacher's
launches never wait for a payload. On a CPU `submit` encodes with all of the worker's threads: a
further thread would only take a core from one of the forward's, and the others would wait for that
one; and the states are freed at once. Commits, which wait for the network, have threads everywhere.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from kdscale.cache.codecs import Codec, make_codec
from kdscale.cache.codecs.noise import uniforms
from kdscale.cache.format.records import Commit
from kdscale.cache.rows import RowStats
from kdscale.config.cache import CacheConfig
from kdscale.data.rows.pack import concatenate
from kdscale.teacher.states import encode_states
from kdscale.teacher.worker_queue import WorkerQueue
from kdscale.tracking import prometheus as metrics
from kdscale.train.throughput import DeviceTimer
from kdscale.types import Head, Rows, labels_of

# Shards in commit. With one that waits and one that fills, no more than four are in memory.
_COMMITS = 2
_SHARDS_WAITING = 1

CommitShard = Callable[[int, Rows, np.ndarray, RowStats], Commit | None]
"""`ShardWriter.commit`."""


@dataclass(frozen=True)
class Forward:
    """Hidden states at the targets of consecutive `rows` of a shard; `last` closes the shard."""

    shard: int
    rows: Rows
    states: torch.Tensor  # [P, D], what the head takes
    last: bool


@dataclass(frozen=True)
class EncoderProgress:
    """Counts and times (in seconds) of an encoder so far."""

    committed_rows: int = 0
    committed_bytes: int = 0
    head: float = 0.0  # the products of hidden states and head
    encoding: float = 0.0
    committing: float = 0.0  # summed over threads
    waiting: float = 0.0  # of the teacher, for a full queue


@dataclass(frozen=True)
class _Part:
    rows: Rows
    payload: np.ndarray  # [B, T * bytes_per_position] uint8
    entropy: np.ndarray  # [B] float32
    nll: np.ndarray  # [B] float32


class Encoder:
    """Encode forwards in order, and commit each shard when its last one is through.

    A context manager. `submit` waits while the queues are full. An error in a thread is raised by
    the next `submit`, or at the end of the block.
    """

    def __init__(
        self,
        config: CacheConfig,
        commit: CommitShard,
        *,
        head: Head,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepare the threads: `commit` is called from several; `seed` is that of the noise.

        `head` is the teacher's, whole on `device`.
        """
        self._temperature = config.temperature
        self._seed = seed
        self._device = device
        self._codec: Codec = make_codec(config.codec, head.vocab_size)
        self._head = head
        self._head_timer = DeviceTimer(device)
        self._commit_shard = commit
        self._parts: list[_Part] = []
        self._committed = (0, 0)  # rows, bytes
        self._lock = threading.Lock()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._encodes = WorkerQueue(
            "encode",
            self._encode,
            threads=0 if self._stream is None else 1,
            waiting=config.capture.queue_batches,
        )
        self._commits = WorkerQueue(
            "commit", self._commit, threads=_COMMITS, waiting=_SHARDS_WAITING
        )
        self._stack = ExitStack()

    def __enter__(self) -> "Encoder":
        # Left in the opposite order: the last forward is encoded before the commits end.
        self._stack.enter_context(self._commits)
        self._stack.enter_context(self._encodes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def submit(self, forward: Forward) -> None:
        """Hand over one forward."""
        ready = None
        if self._stream is not None:
            ready = torch.cuda.current_stream(self._device).record_event()
        self._encodes.put((forward, ready))

    @property
    def progress(self) -> EncoderProgress:
        """The progress so far, at any time."""
        rows, size = self._committed
        waiting = self._commits.waited if self._stream is None else self._encodes.waited
        head = self._head_timer.seconds
        encoding = self._encodes.busy - self._commits.waited - head
        return EncoderProgress(rows, size, head, encoding, self._commits.busy, waiting)

    def _encode(self, item: tuple[Forward, torch.cuda.Event | None]) -> None:
        forward, ready = item
        if self._stream is not None and ready is not None:
            self._stream.wait_event(ready)
        with torch.cuda.stream(self._stream):
            self._parts.append(self._part(forward))
        if forward.last:
            parts, self._parts = self._parts, []
            self._commits.put((forward.shard, parts))

    def _part(self, forward: Forward) -> _Part:
        rows, device = forward.rows, self._device
        batch, length = rows.loss_mask.shape
        targets = np.flatnonzero(rows.loss_mask)
        where = torch.from_numpy(targets).to(device)
        labels = torch.from_numpy(labels_of(rows)).flatten()[targets].long().to(device)
        sample_ids = torch.from_numpy(rows.sample_ids).to(device)
        noise = uniforms(self._seed, sample_ids, length, self._codec.streams).flatten(0, 1)[where]
        found = encode_states(
            self._codec,
            self._head,
            forward.states,
            labels,
            noise,
            self._temperature,
            self._head_timer,
        )
        # Positions that are no targets stay zero bytes: no loss ever looks at them.
        payload = np.zeros((batch * length, self._codec.bytes_per_position), np.uint8)
        payload[targets] = found.encoded.payload.cpu().numpy()
        return _Part(
            rows,
            payload.reshape(batch, -1),
            _row_means(found.encoded.entropy, rows.loss_mask),
            _row_means(found.nll, rows.loss_mask),
        )

    def _commit(self, item: tuple[int, list[_Part]]) -> None:
        shard, parts = item
        rows = concatenate([part.rows for part in parts], parts[0].rows.input_ids.shape[1])
        stats = RowStats(
            sample_ids=rows.sample_ids,
            entropy=np.concatenate([part.entropy for part in parts]),
            nll=np.concatenate([part.nll for part in parts]),
            length=rows.loss_mask.sum(axis=1).astype(np.int32),
        )
        payload = np.concatenate([part.payload for part in parts])
        commit = self._commit_shard(shard, rows, payload, stats)
        if commit is not None:
            with self._lock:
                before = self._committed
                size = commit.length + commit.index_length
                self._committed = before[0] + commit.rows, before[1] + size
            metrics.count("kdscale_shards_committed", 1)
            metrics.count("kdscale_bytes_committed", size)


def _row_means(values: torch.Tensor, mask: np.ndarray) -> np.ndarray:
    """Return the mean over each sequence's targets ([B, T] bool) of `values` [P], [B] float32.

    0 for a sequence without targets.
    """
    row_of = np.nonzero(mask)[0]
    sums = np.bincount(row_of, weights=values.cpu().numpy(), minlength=len(mask))
    return (sums / np.maximum(mask.sum(axis=1), 1)).astype(np.float32)
