"""The reader gives the rows asked for, verified, within its memory, and names what is damaged."""

import multiprocessing
import os
import pickle
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kdscale.cache.maintain.verify import verify
from kdscale.cache.read.chunk_cache import ChunkCache
from kdscale.cache.read.disk_cache import DiskCache
from kdscale.cache.read.loader import read_batches
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.rows import CachedRows
from kdscale.config.cache import CodecConfig, FullCodec, TopkCodec, VaroptCodec
from kdscale.errors import KdscaleError
from kdscale.store import open_store
from kdscale.store.local import LocalStore
from kdscale.types import DenseTargets, Rows
from tests.s3 import S3Server
from tests.unit.cache.planted import Plant, assert_same_rows, changed


def shuffled(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "cache-ahead" in thread.name]


def test_rows_come_in_the_order_asked_for(plant: Plant) -> None:
    planted = plant().publish()
    reader = CacheReader(planted.store)
    assert len(reader) == 23
    indices = np.concatenate([shuffled(23), [7, 7, 0, 22]])
    found = reader.read(indices)
    assert_same_rows(found.rows, planted.rows.take(indices))
    assert np.array_equal(found.payload, planted.payload[indices])
    assert np.array_equal(found.entropy, planted.stats.entropy[indices])
    assert np.array_equal(found.nll, planted.stats.nll[indices])
    assert len(reader.read(np.array([], dtype=np.int64))) == 0


@pytest.mark.parametrize("index", [-1, 23])
def test_row_that_does_not_exist_is_an_index_error(plant: Plant, index: int) -> None:
    with pytest.raises(IndexError, match="of 23"):
        CacheReader(plant().publish().store).read(np.array([0, index]))


def test_statistics_are_those_of_all_rows_in_order(plant: Plant) -> None:
    planted = plant().publish()
    reader = CacheReader(planted.store)
    for name in ("sample_ids", "entropy", "nll", "length"):
        assert np.array_equal(getattr(reader.statistics, name), getattr(planted.stats, name))
    assert reader.metrics["chunks_fetched"] == 0


@pytest.mark.parametrize("config", [FullCodec(), TopkCodec(k=3), VaroptCodec(k=4, head=1)])
def test_position_i_holds_the_planted_distribution_of_token_i_plus_1(
    plant: Plant, config: CodecConfig
) -> None:
    planted = plant(config=config).publish()
    reader = CacheReader(planted.store)
    assert reader.codec == planted.codec
    cached = reader.read(shuffled(23))
    targets = reader.codec.decode(torch.from_numpy(cached.payload))
    following = torch.from_numpy(cached.rows.input_ids[:, 1:]).long()
    if isinstance(targets, DenseTargets):
        mass = targets.log_probs.exp()[:, :-1].gather(-1, following[..., None])[..., 0]
    else:
        hit = targets.ids[:, :-1] == following[..., None]
        mass = (targets.probs[:, :-1] * hit).sum(-1)
    assert mass.shape == (23, 15)
    # 0.75 in 254 steps for varopt, in float16 for the others.
    error = (mass - 0.75).abs()[torch.from_numpy(cached.rows.loss_mask[:, :-1])]
    assert len(error) > 300
    assert error.max() < 1 / 254


def test_student_of_another_tokenizer_is_refused(plant: Plant) -> None:
    planted = plant().publish()
    CacheReader(planted.store, expected={"tokenizer": "cd" * 8, "vocab_size": 50})
    with pytest.raises(KdscaleError) as caught:
        CacheReader(planted.store, expected={"tokenizer": "ff" * 8, "vocab_size": 51, "seed": 0})
    assert "tokenizer: the cache has" in caught.value.problem
    assert "vocab_size: the cache has 50, expected 51" in caught.value.problem
    assert "seed" not in caught.value.problem


def test_corrupt_chunk_is_refused_before_it_is_decoded(plant: Plant) -> None:
    """The flipped bit is in the message's flatbuffer, which a decoder could crash on."""
    planted = plant().publish()
    shard, chunk = CacheReader(planted.store).manifest.shards[1], planted.chunks(1)[1]
    planted.damage(shard.object, chunk.offset + 9)
    reader = CacheReader(planted.store)
    with pytest.raises(KdscaleError) as caught:
        reader.read(np.array([0, 12]))
    problem = caught.value.problem
    assert f"{planted.store}/{shard.object} is corrupt" in problem
    assert f"at byte {chunk.offset}" in problem
    assert f"not {chunk.digest}" in problem
    assert "kdscale cache verify" in caught.value.fix
    # Only that chunk: its neighbours in the object are fine.
    assert np.array_equal(reader.read(np.array([8, 15])).payload, planted.payload[[8, 15]])


def test_every_byte_of_a_chunk_is_guarded(plant: Plant) -> None:
    planted = plant(rows=3).publish()
    shard, chunk = CacheReader(planted.store).manifest.shards[0], planted.chunks(0)[0]
    for at in range(chunk.offset, chunk.offset + chunk.length, 97):
        planted.damage(shard.object, at)
        with pytest.raises(KdscaleError, match="is corrupt"):
            CacheReader(planted.store).read(np.array([1]))
        planted.damage(shard.object, at)
    assert np.array_equal(
        CacheReader(planted.store).read(np.array([1])).payload[0], planted.payload[1]
    )


def test_chunk_that_is_corrupt_once_is_fetched_again(plant: Plant, tmp_path: Path) -> None:
    class OnceWrong(LocalStore):
        wrong = threading.Lock()

        def get_range(self, key: str, start: int, length: int) -> bytes:
            data = super().get_range(key, start, length)
            return bytes(length) if self.wrong.acquire(blocking=False) else data

    planted = plant(store=OnceWrong(str(tmp_path / "once"))).publish()
    reader = CacheReader(planted.store)
    assert np.array_equal(reader.read(np.array([4])).payload[0], planted.payload[4])
    assert OnceWrong.wrong.locked()


def test_truncated_and_missing_objects_are_named(plant: Plant) -> None:
    planted = plant().publish()
    first, second, third = CacheReader(planted.store).manifest.shards
    planted.store.put(first.object, planted.store.get(first.object)[:1000])
    planted.store.delete(second.object)
    reader = CacheReader(planted.store)
    with pytest.raises(KdscaleError, match=f"has 1000 bytes, the manifest says {first.length}"):
        reader.read(np.array([7]))
    with pytest.raises(KdscaleError, match=f"{second.object} is missing"):
        reader.read(np.array([8]))
    planted.damage(third.index, 40)
    with pytest.raises(KdscaleError, match=f"{third.index} is corrupt"):
        _ = reader.statistics


def test_damage_that_was_repaired_is_read_without_a_new_reader(plant: Plant) -> None:
    planted = plant().publish()
    reader = CacheReader(planted.store)
    shard = reader.manifest.shards[0]
    planted.damage(shard.object, planted.chunks(0)[0].offset + 50)
    with pytest.raises(KdscaleError):
        reader.read(np.array([0]))
    planted.damage(shard.object, planted.chunks(0)[0].offset + 50)
    assert np.array_equal(reader.read(np.array([0])).payload[0], planted.payload[0])


def test_chunks_in_memory_are_not_fetched_again(plant: Plant) -> None:
    planted = plant().publish()
    reader = CacheReader(planted.store)
    reader.read(np.arange(23))
    reader.read(shuffled(23))
    chunks = [chunk for shard in range(3) for chunk in planted.chunks(shard)]
    assert reader.metrics["chunks_fetched"] == len(chunks) == 9
    assert reader.metrics["bytes_fetched"] == sum(chunk.length for chunk in chunks)
    assert reader.metrics["chunk_hits"] == 9


def test_memory_stays_within_its_bound(plant: Plant) -> None:
    planted = plant(rows=60, sequences_per_shard=30).publish()
    chunk_bytes = CacheReader(planted.store).read(np.arange(3)).nbytes
    reader = CacheReader(planted.store, memory_bytes=int(4.5 * chunk_bytes))
    for order in np.split(shuffled(60), 12):
        assert np.array_equal(reader.read(order).payload, planted.payload[order])
        assert reader._chunks.nbytes <= 4.5 * chunk_bytes
    assert reader._chunks.nbytes > 3 * chunk_bytes
    reader.read(np.array([0, 3, 6, 9]))
    fetched = reader.metrics["chunks_fetched"]
    reader.read(np.array([2, 5, 8, 11]))
    assert reader.metrics["chunks_fetched"] == fetched


def test_a_chunk_larger_than_the_memory_is_read_all_the_same(plant: Plant) -> None:
    planted = plant().publish()
    reader = CacheReader(planted.store, memory_bytes=1)
    assert np.array_equal(reader.read(np.arange(23)).payload, planted.payload)
    assert reader._chunks.nbytes == 0


def test_the_least_recently_used_chunk_goes_first() -> None:
    def chunk(number: int) -> tuple[CachedRows, int]:
        loaded.append(number)
        return sample, 7

    nothing = np.zeros(0, np.uint8)
    rows = Rows(nothing, nothing, nothing, nothing, nothing)
    sample = CachedRows(rows, np.zeros(100, np.uint8), nothing, nothing)
    loaded: list[int] = []
    cache = ChunkCache(chunk, memory_bytes=250)
    for number in (0, 1, 0, 2, 0, 1):
        assert [found for found, _ in cache.stream([number])] == [number]
    assert loaded == [0, 1, 2, 1]
    assert (cache.fetched, cache.fetched_bytes, cache.hits) == (4, 28, 2)


def test_prefetched_batches_are_those_of_direct_reads(plant: Plant) -> None:
    planted = plant().publish()
    orders = [shuffled(23, seed)[:5] for seed in range(20)]
    direct = CacheReader(planted.store)
    reader = CacheReader(planted.store)
    for ahead in (1, 3, 50):
        batches = list(read_batches(reader, iter(orders), prefetch=ahead))
        assert len(batches) == 20
        for batch, order in zip(batches, orders, strict=True):
            expected = direct.read(order)
            assert_same_rows(batch.rows, expected.rows)
            assert np.array_equal(batch.payload, expected.payload)
    assert reader_threads() == []


def test_only_so_many_batches_are_taken_ahead(plant: Plant) -> None:
    reader = CacheReader(plant().publish().store)
    taken: list[int] = []

    def orders() -> Iterator[np.ndarray]:
        while True:
            taken.append(len(taken))
            yield np.array([len(taken) % 23])

    batches = read_batches(reader, orders(), prefetch=3)
    for _ in range(5):
        next(batches)
    assert len(taken) == 5 + 3
    batches.close()
    assert reader_threads() == []


def test_an_error_surfaces_at_its_batch(plant: Plant) -> None:
    planted = plant().publish()
    shard = CacheReader(planted.store).manifest.shards[2]
    planted.damage(shard.object, planted.chunks(2)[0].offset + 100)
    reader = CacheReader(planted.store)
    orders = [np.array([0]), np.array([9]), np.array([1]), np.array([16]), np.array([2])]
    batches = read_batches(reader, orders, prefetch=4)
    for expected in (0, 9, 1):
        assert np.array_equal(next(batches).payload[0], planted.payload[expected])
    with pytest.raises(KdscaleError, match=shard.object):
        next(batches)
    assert reader_threads() == []


def test_reader_is_safe_in_many_threads(plant: Plant) -> None:
    planted = plant(rows=60, sequences_per_shard=30).publish()
    reader = CacheReader(planted.store, memory_bytes=5000)
    wrong: list[np.ndarray] = []

    def work(seed: int) -> None:
        for order in np.split(shuffled(60, seed), 6):
            if not np.array_equal(reader.read(order).payload, planted.payload[order]):
                wrong.append(order)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_reader_pickles_with_its_manifest_pinned(plant: Plant) -> None:
    planted = plant().publish()
    reader = CacheReader(planted.store)
    reader.read(np.arange(5))
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.manifest == reader.manifest
    assert copy.metrics["chunks_fetched"] == 0
    assert np.array_equal(copy.read(np.array([21, 3])).payload, planted.payload[[21, 3]])


def test_reader_works_in_a_forked_process(plant: Plant) -> None:
    planted = plant().publish()
    reader = CacheReader(planted.store)
    reader.read(np.arange(5))
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put(reader.read(np.arange(4, 9)).payload))
    child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0
    assert np.array_equal(results.get(), planted.payload[4:9])


@pytest.mark.s3
def test_cache_on_s3_is_made_read_and_verified(plant: Plant, s3_env: S3Server) -> None:
    store = open_store(f"{s3_env.url}/cache-reader")
    planted = plant(store=store).publish()
    shard, rows, payload, stats = planted.shard(0)
    assert not planted.writer.commit(shard, rows, changed(payload), stats)
    reader = CacheReader(store)
    orders = [shuffled(23, seed)[:7] for seed in range(6)]
    for batch, order in zip(read_batches(reader, orders, prefetch=2), orders, strict=True):
        assert_same_rows(batch.rows, planted.rows.take(order))
        assert np.array_equal(batch.payload, planted.payload[order])
    assert verify(store).bad == []
    broken = reader.manifest.shards[1]
    planted.damage(broken.object, planted.chunks(1)[0].offset + 70)
    with pytest.raises(KdscaleError, match=f"{broken.object} is corrupt"):
        CacheReader(store).read(np.array([8]))
    assert {damage.shard for damage in verify(store).bad} == {1}
    store.put(broken.object, store.get(broken.object)[:500])
    with pytest.raises(KdscaleError, match="has 500 bytes, the manifest says"):
        CacheReader(store).read(np.array([8]))


def test_chunks_that_need_no_unpacking_are_not_copied_to_the_disk_they_lie_on(
    plant: Plant, tmp_path: Path
) -> None:
    plain = plant(packed=False).publish()
    disk = DiskCache(tmp_path / "chunks", 1 << 20)
    reader = CacheReader(plain.store, disk=disk)
    assert np.array_equal(reader.read(np.arange(23)).payload, plain.payload)
    assert not (tmp_path / "chunks").exists()
    packed = plant(store=open_store(str(tmp_path / "packed"))).publish()
    CacheReader(packed.store, disk=disk).read(np.arange(23))
    assert len(list((tmp_path / "chunks" / "chunks").iterdir())) == 9


@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="needs a second file system")
def test_chunks_on_another_disk_are_kept(plant: Plant, tmp_path: Path) -> None:
    plain = plant(packed=False).publish()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert os.stat(folder).st_dev != os.stat(tmp_path).st_dev
        CacheReader(plain.store, disk=DiskCache(Path(folder), 1 << 20)).read(np.arange(23))
        assert len(list((Path(folder) / "chunks").iterdir())) == 9
