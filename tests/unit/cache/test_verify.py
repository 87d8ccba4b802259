"""Verify reads everything, and finds every kind of damage, whoever did it."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from kdscale.cache.commit.manifest import load_manifest, publish
from kdscale.cache.format.records import Chunk, Commit, Shard, commit_key, read_record, record_bytes
from kdscale.cache.format.shard_file import chunk_digest, decode_index, encode_index, object_digest
from kdscale.cache.maintain.inspect import inspect
from kdscale.cache.maintain.repair import repair
from kdscale.cache.maintain.verify import verify
from kdscale.cache.rows import RowStats
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec, VaroptCodec
from kdscale.errors import KdscaleError
from kdscale.store import Store
from tests.unit.cache.planted import Plant, Planted
from tests.unit.cache.test_commit import appended


@pytest.mark.parametrize(
    "config", [VaroptCodec(k=4, head=2), TopkCodec(k=5), SampleCodec(draws=6), FullCodec()]
)
def test_a_sound_cache_is_read_whole(plant: Plant, config: CodecConfig) -> None:
    planted = plant(config=config).publish()
    steps: list[tuple[int, int]] = []
    report = verify(planted.store, workers=2, progress=lambda *at: steps.append(at))
    assert report.bad == []
    assert (report.version, report.shards, report.shards_of_cache, report.chunks) == (1, 3, 3, 9)
    # Data and index of three shards, the table of shards, and the prior of codecs that sample.
    assert report.objects == 7 + len(planted.store.list("prior/"))
    assert report.bytes == inspect(planted.store)["bytes"]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_every_damage_to_a_shard_is_named(plant: Plant) -> None:
    planted = plant(rows=40).publish()
    shards = load_manifest(planted.store).shards
    chunk = planted.chunks(0)[2]
    planted.damage(shards[0].object, chunk.offset + 30)
    planted.store.put(shards[1].object, planted.store.get(shards[1].object)[:-1])
    planted.store.delete(shards[2].index)
    planted.store.put("commits/000003.json", planted.store.get("commits/000002.json"))
    planted.store.delete("commits/000004.json")
    found = [str(damage) for damage in verify(planted.store).bad]
    assert len(found) == 6
    length = shards[1].length
    assert f"shard 0: {shards[0].object} ({shards[0].length} bytes) has digest" in found[0]
    assert found[1].endswith(f"in its chunk at byte {chunk.offset}")
    assert f"shard 1: {shards[1].object} ({length - 1} bytes) has digest" in found[2]
    assert found[3] == f"shard 2: {shards[2].index} is missing"
    assert found[4] == "shard 3: commits/000003.json is of another attempt than the manifest's"
    assert found[5] == "shard 4: commits/000004.json is missing"


def test_a_sample_is_a_share_of_the_shards_that_the_seed_chooses(plant: Plant) -> None:
    planted = plant(rows=60, sequences_per_shard=2).publish()
    for shard in load_manifest(planted.store).shards:
        planted.store.delete(shard.object)

    def sampled(seed: int) -> list[int | None]:
        report = verify(planted.store, sample=0.2, seed=seed)
        assert (report.shards, report.shards_of_cache) == (6, 30)
        return [damage.shard for damage in report.bad]

    assert sampled(0) == sampled(0)
    assert len(set(sampled(0))) == 6
    assert {shard for seed in range(40) for shard in sampled(seed)} == set(range(30))
    assert verify(planted.store, sample=0.001).shards == 1
    assert verify(planted.store, sample=1.0).shards == 30


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_sample_that_is_no_share_is_refused(plant: Plant, share: float) -> None:
    with pytest.raises(KdscaleError, match="no share"):
        verify(plant().publish().store, sample=share)


def drop_prior(planted: Planted) -> str:
    (key,) = planted.store.list("prior/")
    planted.damage(key, 40)
    return key


def drop_table(planted: Planted) -> str:
    (key,) = planted.store.list("manifests/shards-")
    planted.store.delete(key)
    return "manifests/00000001.json"


def cut_manifest(planted: Planted) -> str:
    key = "manifests/00000001.json"
    planted.store.put(key, planted.store.get(key)[:-30])
    return key


def drop_plan(planted: Planted) -> str:
    planted.store.delete("plans/0000.json")
    return "plans/0000.json"


def change_plan(planted: Planted) -> str:
    key = "plans/0000.json"
    changed = planted.store.get(key).replace(
        b'"sequences_per_chunk": 3', b'"sequences_per_chunk": 4'
    )
    planted.store.put(key, changed)
    return key


@pytest.mark.parametrize("harm", [drop_prior, drop_table, cut_manifest, drop_plan, change_plan])
def test_damage_to_what_shards_share_is_reported_once(
    plant: Plant, harm: Callable[[Planted], str]
) -> None:
    planted = plant().publish()
    key = harm(planted)
    (damage,) = verify(planted.store).bad
    assert (damage.shard, damage.key) == (None, key)
    assert str(damage).startswith(f"{key} ")


def test_no_cache_and_no_such_version(plant: Plant) -> None:
    planted = plant()
    with pytest.raises(KdscaleError, match="holds no cache"):
        verify(planted.store)
    planted.publish()
    with pytest.raises(KdscaleError, match="has no manifest 2"):
        verify(planted.store, version=2)


def replace_shard(planted: Planted, shard: Shard, data: bytes, index: bytes) -> None:
    """Publish other objects as the shard's, with digests that are right."""
    changed = shard.model_copy(
        update={
            "digest": object_digest(data),
            "length": len(data),
            "index_digest": object_digest(index),
            "index_length": len(index),
        }
    )
    commit = Commit(**changed.model_dump(), attempt="wrong", seconds=0)
    planted.store.put(commit.object, data)
    planted.store.put(commit.index, index)
    planted.store.put(commit_key(shard.shard), record_bytes(commit))
    publish(planted.store, planted.generation)


def test_right_digests_of_wrong_rows_are_found(plant: Plant) -> None:
    planted = plant().publish()
    shard = load_manifest(planted.store).shards[1]
    data, stats = planted.store.get(shard.object), planted.shard(1)[3]
    turned = RowStats(stats.sample_ids[::-1], stats.entropy, stats.nll, stats.length)
    replace_shard(planted, shard, data, encode_index(turned, planted.chunks(1)))
    bad = verify(planted.store).bad
    assert [(d.shard, d.problem.partition(" in its")[0]) for d in bad] == [
        (1, "holds other rows than its index says")
    ] * 3


def test_a_chunk_that_no_reader_can_decode_is_found(plant: Plant) -> None:
    planted = plant().publish()
    shard = load_manifest(planted.store).shards[2]
    first, *others = planted.chunks(2)
    data = bytearray(planted.store.get(shard.object))
    data[first.offset + 8 : first.offset + 40] = bytes(32)
    digest = chunk_digest(bytes(data[first.offset : first.offset + first.length]))
    chunks = (Chunk(**first.model_dump() | {"digest": digest}), *others)
    index = decode_index(planted.store.get(shard.index))
    replace_shard(planted, shard, bytes(data), encode_index(index.stats, chunks))
    (damage,) = verify(planted.store).bad
    assert (damage.shard, damage.key[:12]) == (2, "data/000002-")
    assert damage.problem.startswith("cannot be decoded (")


def test_targets_that_are_no_distribution_are_found(plant: Plant) -> None:
    planted = plant(packed=False)
    # Ids have two bytes and the vocabulary 50 ids: all ones name an id that there is not.
    wrong = np.where(planted.rows.loss_mask[..., None], np.uint8(255), np.uint8(0))
    planted.payload[16:] = wrong[16:]
    planted.publish()
    bad = verify(planted.store).bad
    assert [(d.shard, d.problem.partition(" in its")[0]) for d in bad] == [
        (2, "holds targets that are no distribution")
    ] * 3


def test_counts_that_do_not_agree_are_found(plant: Plant) -> None:
    planted = plant().publish()
    commit = read_record(Commit, planted.store, commit_key(0))
    more = commit.model_copy(update={"targets": commit.targets + 1})
    planted.store.put(commit_key(0), record_bytes(more))
    publish(planted.store, planted.generation)
    (damage,) = verify(planted.store).bad
    assert damage.problem == (
        f"should have {commit.targets + 1} targets; its index counts {commit.targets}"
    )


def test_an_append_under_way_is_no_damage(plant: Plant) -> None:
    planted = plant().publish()
    more = appended(planted)
    planted.store.delete(commit_key(more.generation.first_shard))
    assert verify(planted.store).bad == []
    assert more.writer.commit(*more.shard(0))
    publish(planted.store, more.generation)
    report = verify(planted.store)
    assert (report.version, report.shards, report.chunks, report.bad) == (2, 6, 14, [])
    report = verify(planted.store, version=1)
    assert (report.version, report.shards, report.chunks, report.bad) == (1, 3, 9, [])


@pytest.mark.parametrize("command", [verify, repair], ids=["verify", "repair"])
def test_a_cache_of_another_format_is_no_damage_and_stays_as_it_is(
    plant: Plant, command: Callable[[Store], object]
) -> None:
    store = plant().publish().store
    key = "manifests/00000001.json"
    manifest = json.loads(store.get(key)) | {"format": 3}
    del manifest["checksum"]
    store.put(key, json.dumps(manifest).encode())
    before = {name: store.get(name) for name in store.list("")}
    with pytest.raises(KdscaleError, match="written by a kdscale of cache format 3"):
        command(store)
    assert {name: store.get(name) for name in before} == before
