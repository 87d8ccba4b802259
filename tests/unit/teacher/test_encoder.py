"""From logits to commits: what is handed over, when, and how much of it is in memory."""

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

from kdscale.cache.codecs import make_codec, uniforms
from kdscale.cache.format.records import Commit
from kdscale.cache.rows import RowStats
from kdscale.config.cache import CacheConfig, FullCodec, VaroptCodec
from kdscale.errors import KdscaleError
from kdscale.teacher.encoder import Encoder, Forward
from kdscale.types import DenseTargets, Head, Rows
from tests.unit.teacher.patience import PATIENCE_SECONDS, wait_until

VOCAB, LENGTH, SEED = 8, 4, 5
# A model that makes its logits itself: they are what is handed over.
HEAD = Head(None, None, VOCAB)


def some_rows(count: int, first: int = 0) -> Rows:
    generator = np.random.default_rng(first)
    ids = generator.integers(0, VOCAB, (count, LENGTH), dtype=np.int32)
    mask = np.ones((count, LENGTH), dtype=bool)
    mask[:, -1] = False
    names = (np.arange(count * 16) + first).astype(np.uint8).reshape(count, 16)
    return Rows(names, ids, np.ones_like(ids), mask, np.ones(count))


def some_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, LENGTH, VOCAB, generator=torch.Generator().manual_seed(seed))


def forward(shard: int, rows: Rows, logits: torch.Tensor, *, last: bool) -> Forward:
    return Forward(shard, rows, logits[torch.from_numpy(rows.loss_mask)], last)


class Commits:
    """Keeps what is committed, behind a gate that a test may hold shut."""

    def __init__(self, gate: threading.Semaphore | None = None) -> None:
        self.shards: dict[int, tuple[Rows, np.ndarray, RowStats]] = {}
        self.entered = threading.Semaphore(0)
        self._gate = gate

    def __call__(self, shard: int, rows: Rows, payload: np.ndarray, stats: RowStats) -> Commit:
        self.entered.release()
        if self._gate is not None:
            assert self._gate.acquire(timeout=PATIENCE_SECONDS)
        self.shards[shard] = rows, payload, stats
        return Commit(
            shard=shard,
            digest="0" * 32,
            length=100,
            index_digest="0" * 32,
            index_length=11,
            rows=len(rows),
            targets=int(stats.length.sum()),
            attempt="a",
            seconds=0.0,
        )


def encoder(commits: Commits, config: CacheConfig | None = None) -> Encoder:
    return Encoder(
        config or CacheConfig(codec=FullCodec()),
        commits,
        head=HEAD,
        seed=SEED,
        device=torch.device("cpu"),
    )


def test_a_shard_is_committed_when_its_last_forward_is_through() -> None:
    commits = Commits()
    with encoder(commits) as subject:
        subject.submit(forward(3, some_rows(2), some_logits(2), last=False))
        subject.submit(forward(3, some_rows(1, 2), some_logits(1), last=True))
        subject.submit(forward(4, some_rows(2), some_logits(2), last=False))
    assert set(commits.shards) == {3}
    rows, payload, stats = commits.shards[3]
    assert rows.sample_ids.tolist() == [
        *some_rows(2).sample_ids.tolist(),
        *some_rows(1, 2).sample_ids.tolist(),
    ]
    assert payload.shape == (3, LENGTH * 2 * VOCAB)
    assert stats.sample_ids.tolist() == rows.sample_ids.tolist()
    progress = subject.progress
    assert (progress.committed_rows, progress.committed_bytes) == (3, 111)
    assert progress.encoding > 0
    assert progress.committing > 0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_payload_and_statistics_are_those_of_each_position(temperature: float) -> None:
    config = CacheConfig(codec=FullCodec(), temperature=temperature)
    rows, logits = some_rows(3), some_logits(3)
    rows.loss_mask[1] = False
    rows.loss_mask[2, 1] = False
    commits = Commits()
    with encoder(commits, config) as subject:
        subject.submit(forward(0, rows, logits, last=True))
    _, payload, stats = commits.shards[0]
    codec = make_codec(config.codec, VOCAB)
    cells = payload.reshape(3, LENGTH, codec.bytes_per_position)
    assert not cells[~rows.loss_mask].any()
    assert stats.length.tolist() == [3, 0, 2]
    for row in (0, 2):
        exact = (logits[row].double() / temperature).log_softmax(-1)
        entropies, losses = [], []
        for at in np.flatnonzero(rows.loss_mask[row]):
            targets = codec.decode(torch.from_numpy(cells[row, at]))
            assert isinstance(targets, DenseTargets)
            assert torch.allclose(targets.log_probs.double(), exact[at], atol=4e-3)
            entropies.append(-(exact[at].exp() * exact[at]).sum().item())
            losses.append(-exact[at, int(rows.input_ids[row, at + 1])].item())
        assert stats.entropy[row] == pytest.approx(np.mean(entropies), rel=1e-5)
        assert stats.nll[row] == pytest.approx(np.mean(losses), rel=1e-5)
    assert stats.entropy[1] == stats.nll[1] == 0


def test_a_shard_has_the_same_bytes_in_other_batches() -> None:
    config = CacheConfig(codec=VaroptCodec(k=3, head=1))
    rows, logits = some_rows(5), some_logits(5)
    payloads = []
    for sizes in ([5], [1, 4], [2, 2, 1]):
        commits = Commits()
        with encoder(commits, config) as subject:
            for part in np.split(np.arange(5), np.cumsum(sizes)[:-1]):
                last = bool(part[-1] == 4)
                subject.submit(forward(0, rows.take(part), logits[part], last=last))
        payloads.append(commits.shards[0][1])
    assert np.array_equal(payloads[0], payloads[1])
    assert np.array_equal(payloads[0], payloads[2])
    noise = uniforms(SEED, torch.from_numpy(rows.sample_ids), LENGTH, 2)[3, 1:2]
    alone = make_codec(config.codec, VOCAB).encode(logits[3, 1:2], noise).payload
    assert payloads[0].reshape(5, LENGTH, -1)[3, 1].tolist() == alone[0].tolist()


def test_memory_is_bounded_when_the_store_is_slow() -> None:
    """Two commits that hang, one shard that waits: the teacher is stopped at the next one.

    No logits are alive but those in its hands.
    """
    gate = threading.Semaphore(0)
    commits = Commits(gate)
    alive: list[weakref.ref[torch.Tensor]] = []
    submitted = threading.Semaphore(0)

    def teach(subject: Encoder) -> None:
        for shard in range(12):
            made = forward(shard, some_rows(1), some_logits(1), last=True)
            alive.append(weakref.ref(made.states))
            subject.submit(made)
            del made
            submitted.release()

    with encoder(commits) as subject:
        teacher = threading.Thread(target=teach, args=(subject,))
        teacher.start()
        for _ in range(3):
            assert submitted.acquire(timeout=PATIENCE_SECONDS)
        for _ in range(2):
            assert commits.entered.acquire(timeout=PATIENCE_SECONDS)
        wait_until(lambda: len(alive) == 4 and subject.progress.encoding > 0)
        # The gate is shut, so the fourth cannot get through, however long one looks.
        assert not submitted.acquire(blocking=False)
        gc.collect()
        assert sum(each() is not None for each in alive) <= 1
        gate.release(12)
        teacher.join(PATIENCE_SECONDS)
    assert set(commits.shards) == set(range(12))
    assert subject.progress.waiting > 0


def test_logits_that_cannot_be_encoded_end_the_capture() -> None:
    broken = torch.full((2, LENGTH, VOCAB), torch.nan)
    commits = Commits()

    def run() -> None:
        with encoder(commits) as subject:
            subject.submit(forward(0, some_rows(2), broken, last=True))

    with pytest.raises(KdscaleError, match="NaN or infinity at 6 of 6"):
        run()
    assert commits.shards == {}


def test_a_failing_commit_ends_the_capture() -> None:
    """More shards than the queue holds: a thread that had died would wait here for ever."""

    def refuse(shard: int, rows: Rows, payload: np.ndarray, stats: RowStats) -> None:
        raise KdscaleError("The store is gone.", "Bring it back.")

    def run() -> None:
        device = torch.device("cpu")
        config = CacheConfig(codec=FullCodec())
        with Encoder(config, refuse, head=HEAD, seed=0, device=device) as subject:
            for shard in range(50):
                subject.submit(forward(shard, some_rows(1), some_logits(1), last=True))

    with pytest.raises(KdscaleError, match="The store is gone"):
        run()


def test_a_shard_that_another_attempt_committed_first_is_not_counted() -> None:
    def lost(shard: int, rows: Rows, payload: np.ndarray, stats: RowStats) -> None:
        return None

    device = torch.device("cpu")
    config = CacheConfig(codec=FullCodec())
    with Encoder(config, lost, head=HEAD, seed=0, device=device) as subject:
        subject.submit(forward(0, some_rows(1), some_logits(1), last=True))
    assert subject.progress.committed_rows == 0
