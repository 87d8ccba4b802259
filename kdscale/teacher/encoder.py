"""From logits to committed units, in a thread of its own, while the teacher runs on."""

import queue
import threading
from dataclasses import dataclass

import numpy as np
import torch

from kdscale.cache.codecs import Codec, make_codec
from kdscale.cache.codecs.noise import uniforms
from kdscale.cache.container import RowStats
from kdscale.cache.identity import Identity
from kdscale.cache.writer import UnitWriter
from kdscale.config.cache import CacheConfig
from kdscale.data.rows import concatenate
from kdscale.models.forward import next_token_labels, row_tensors
from kdscale.store import Store
from kdscale.types import Rows


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

    def __init__(
        self,
        config: CacheConfig,
        store: Store,
        identity: Identity,
        *,
        vocab_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """`store` and `identity` are the cache's; `seed` is the noise's."""
        self._temperature = config.temperature
        self._seed = seed
        self._device = device
        self._codec: Codec = make_codec(config.codec, vocab_size)
        self._writer = UnitWriter(store, identity, config.rows_per_block)
        self._queue: queue.Queue[Forward | None] = queue.Queue(config.capture.queue_batches)
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
        ids, _, mask = row_tensors(forward.rows, self._device)
        batch, length = ids.shape
        logits = forward.logits[mask].float() / self._temperature
        sample_ids = torch.from_numpy(forward.rows.sample_ids).to(self._device)
        noise = uniforms(self._seed, sample_ids, length)[mask]
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
        rows = concatenate([part.rows for part in parts], parts[0].rows.input_ids.shape[1])
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
