"""The loader: order of `kdscale run`, shares of ranks, epochs, and a state at every boundary."""

from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch

import kdscale
from kdscale.cache.read.reader import CacheReader
from kdscale.config.cache import TopkCodec
from kdscale.config.curriculum import CurriculumConfig
from kdscale.curriculum.sampler import CurriculumSampler
from kdscale.errors import KdscaleError
from tests.training import plant
from tests.unit.cache.planted import ROW_LENGTH, VOCAB, Planted

ROWS = 23


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def cache(planted: Planted) -> kdscale.Cache:
    return kdscale.open_cache(planted.store.url)


def indices(loader: kdscale.Loader, batches: int | None = None) -> list[list[int]]:
    """Return the sequences of all ranks' batches, batch by batch."""
    return [batch.indices.tolist() for batch in islice(loader, batches)]


def flat(batches: Iterable[list[int]]) -> list[int]:
    """Return the sequences of batches, one after the other."""
    return list(chain.from_iterable(batches))


def run_order(planted: Planted, steps: int, size: int, **curriculum: object) -> list[list[int]]:
    """Return the sequences of the steps of `kdscale run`."""
    reader = CacheReader(planted.store)
    sampler = CurriculumSampler(
        CurriculumConfig.model_validate({"warmup_share": 0.0, **curriculum}),
        len(reader),
        global_batch_size=size,
        steps=steps,
        seed=9,
        sequences_per_chunk=reader.sequences_per_chunk,
    )
    sampler.set_difficulty(0, reader.statistics.nll)
    return [sampler.batch(step).tolist() for step in range(steps)]


def test_a_batch_has_what_the_cache_has(cache: kdscale.Cache, planted: Planted) -> None:
    batch = next(iter(cache.loader(4, seed=1)))
    rows = planted.rows.take(batch.indices)
    mask = torch.from_numpy(rows.loss_mask)
    assert torch.equal(batch.input_ids, torch.from_numpy(rows.input_ids).long())
    assert torch.equal(batch.segment_ids, torch.from_numpy(rows.segment_ids).long())
    assert torch.equal(batch.loss_mask, mask)
    following = torch.from_numpy(np.roll(rows.input_ids, -1, axis=1)).long()
    assert torch.equal(batch.labels, torch.where(mask, following, -100))
    for row, segments in zip(batch.position_ids.tolist(), rows.segment_ids.tolist(), strict=True):
        starts = [segments.index(segment) for segment in segments]
        assert row == [place - start for place, start in enumerate(starts)]
    targets = batch.targets
    assert isinstance(targets, kdscale.SparseTargets)
    assert targets.ids.shape == (int(mask.sum()), 4)
    torch.testing.assert_close(targets.probs.sum(-1), torch.ones(len(targets.probs)))
    assert batch.num_targets == batch.num_labels == int(mask.sum())
    assert (batch.vocab_size, batch.temperature) == (VOCAB, 1.0)
    with pytest.raises(TypeError):
        dict(**batch)  # type: ignore[arg-type]


def test_targets_of_other_codecs_are_their_own(tmp_path: Path) -> None:
    cache = kdscale.open_cache(plant(tmp_path, TopkCodec(k=5)).store.url)
    targets = next(iter(cache.loader(2))).targets
    assert isinstance(targets, kdscale.SparseTargets)
    assert targets.ghost is not None


def test_endless_batches_are_those_of_a_run(cache: kdscale.Cache, planted: Planted) -> None:
    expected = run_order(planted, 14, 6)
    loader = cache.loader(6, seed=9, endless=True)
    assert indices(loader, 14) == expected
    assert indices(cache.loader(6, seed=8, endless=True), 14) != expected
    halves = indices(cache.loader(3, seed=9, endless=True), 28)
    assert [a + b for a, b in zip(halves[::2], halves[1::2], strict=True)] == expected
    with pytest.raises(TypeError):
        len(loader)


@pytest.mark.parametrize("pacing", ["root", "baby_step"])
def test_a_curriculum_gives_the_batches_of_a_run(
    cache: kdscale.Cache, planted: Planted, pacing: str
) -> None:
    curriculum = {"difficulty": "nll", "warmup_share": 0.5, "pacing": pacing}
    options = {"seed": 9, "curriculum": curriculum, "steps": 9, "global_batch_size": 6}
    loader = cache.loader(4, **options)  # type: ignore[arg-type]
    found = indices(loader)
    assert len(loader) == len(found) == 18
    expected = run_order(planted, 9, 6, **curriculum)
    assert [a + b for a, b in zip(found[::2], found[1::2], strict=True)] == expected
    again = cache.loader(3, **options)  # type: ignore[arg-type]
    again.load_state_dict({**loader.state_dict(), "position": 24})
    assert flat(indices(again)) == flat(expected[4:])


def test_an_epoch_has_every_sequence_once_and_the_next_is_another(cache: kdscale.Cache) -> None:
    loader = cache.loader(4, seed=9)
    epochs = [indices(loader) for _ in range(3)]
    for number, epoch in enumerate(epochs):
        assert [len(batch) for batch in epoch] == [4] * 5 + [3]
        assert sorted(flat(epoch)) == list(range(ROWS)), number
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(loader) == 6
    assert loader.epoch == 3
    loader.set_epoch(1)
    assert indices(loader) == epochs[1]


def test_an_iteration_that_was_left_goes_on(cache: kdscale.Cache) -> None:
    whole = indices(cache.loader(4, seed=9))
    loader = cache.loader(4, seed=9)
    assert indices(loader, 2) + indices(loader) == whole


@pytest.mark.parametrize("endless", [False, True])
def test_the_state_goes_on_at_every_boundary(cache: kdscale.Cache, endless: bool) -> None:
    count = 14
    whole = cache.loader(4, seed=9, endless=endless)
    states, seen = [whole.state_dict()], []
    while len(seen) < count:
        for batch in islice(whole, count - len(seen)):
            seen.append((batch.indices.tolist(), batch.input_ids))
            states.append(whole.state_dict())
    for number, state in enumerate(states[:-1]):
        resumed = cache.loader(4, seed=9, endless=endless)
        resumed.load_state_dict(state)
        resumed.set_epoch(resumed.epoch)
        found = next(iter(resumed))
        assert found.indices.tolist() == seen[number][0], number
        assert torch.equal(found.input_ids, seen[number][1])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_batches_and_take_over_from_other_numbers_of_ranks(
    cache: kdscale.Cache, world_size: int
) -> None:
    alone = flat(indices(cache.loader(4, seed=9)))
    ranks = [cache.loader(2, seed=9, rank=r, world_size=world_size) for r in range(world_size)]
    epochs = [list(loader) for loader in ranks]
    assert {len(epoch) for epoch in epochs} == {len(ranks[0])}
    assert [loader.state_dict() for loader in ranks] == [ranks[0].state_dict()] * world_size
    for parts in zip(*epochs, strict=True):
        counted = [row for part in parts for row in part.loss_mask.any(1).tolist()]
        assert sum(counted) == len(parts[0].indices)
        shared = {
            tuple(row) for part in parts for row in part.input_ids[part.loss_mask.any(1)].tolist()
        }
        expected = cache.reader.read(parts[0].indices).rows.input_ids
        assert shared == {tuple(row) for row in expected.tolist()}
    assert flat(part.indices.tolist() for part in epochs[0]) == alone
    # Another number of ranks goes on from any batch.
    first = cache.loader(2, seed=9, rank=0, world_size=world_size)
    next(iter(first))
    single = cache.loader(5, seed=9)
    single.load_state_dict(first.state_dict())
    assert flat(indices(single)) == alone[2 * world_size :]


def test_a_state_of_another_order_is_refused(cache: kdscale.Cache) -> None:
    state = cache.loader(4, seed=9).state_dict()
    with pytest.raises(KdscaleError, match="seed: 9, here 8"):
        cache.loader(4, seed=8).load_state_dict(state)
    with pytest.raises(KdscaleError, match="rows: 22, here 23"):
        cache.loader(4, seed=9).load_state_dict({**state, "rows": 22})
    with pytest.raises(KdscaleError, match="order"):
        cache.loader(4, seed=9).load_state_dict({**state, "order": 0})


def test_bad_numbers_are_refused(cache: kdscale.Cache) -> None:
    with pytest.raises(KdscaleError, match="batch_size is 0"):
        cache.loader(0)
    with pytest.raises(KdscaleError, match="rank 2 of 2"):
        cache.loader(1, rank=2, world_size=2)
    with pytest.raises(KdscaleError, match="needs the steps"):
        cache.loader(1, curriculum={})
    with pytest.raises(KdscaleError, match="there is none"):
        cache.loader(1, steps=4)
    paced = {"steps": 4, "global_batch_size": 2}
    with pytest.raises(KdscaleError, match="'gap'"):
        cache.loader(1, curriculum={"difficulty": "gap", "warmup_share": 0.5}, **paced)
    with pytest.raises(KdscaleError, match="pacing"):
        cache.loader(1, curriculum={"pacing": "slow", "warmup_share": 0.5}, **paced)


def test_places_without_a_cache_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KdscaleError, match="neither a finished cache nor the output"):
        kdscale.open_cache(str(tmp_path))


def test_several_caches_are_read_as_one(tmp_path: Path) -> None:
    places = {}
    for name, weight in (("one", 1.0), ("other", 2.0)):
        places[plant(tmp_path / name).store.url] = weight
    cache = kdscale.open_cache(places)
    assert len(cache) == 3 * ROWS
    assert sorted(flat(indices(cache.loader(7)))) == list(range(3 * ROWS))


def test_a_cache_says_what_it_is(cache: kdscale.Cache, planted: Planted) -> None:
    assert (len(cache), cache.seq_len, cache.vocab_size) == (ROWS, ROW_LENGTH, VOCAB)
    assert cache.task == "causal-lm"
    assert cache.packs
    assert cache.identity["teacher"] == "ab" * 8
    assert np.array_equal(cache.statistics.entropy, planted.stats.entropy)
    with pytest.raises(KdscaleError, match="opened by its own folder"):
        cache.validation()
