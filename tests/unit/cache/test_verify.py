"""Verify reads everything, and finds every kind of damage, whoever did it."""

from collections.abc import Callable

import numpy as np
import pytest

from kdscale.cache.commit.manifest import load_manifest, publish
from kdscale.cache.format.records import Block, Commit, Unit, commit_key, read_record, record_bytes
from kdscale.cache.format.shard_file import block_digest, decode_index, encode_index, object_digest
from kdscale.cache.maintain.inspect import inspect
from kdscale.cache.maintain.verify import verify
from kdscale.cache.rows import RowStats
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec, VaroptCodec
from kdscale.errors import KdscaleError
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
    assert (report.version, report.units, report.units_of_cache, report.blocks) == (1, 3, 3, 9)
    # Data and index of three units, the table of units, and the prior of codecs that sample.
    assert report.objects == 7 + len(planted.store.list("prior/"))
    assert report.bytes == inspect(planted.store)["bytes"]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_every_damage_to_a_unit_is_named(plant: Plant) -> None:
    planted = plant(rows=40).publish()
    units = load_manifest(planted.store).units
    block = planted.blocks(0)[2]
    planted.damage(units[0].object, block.offset + 30)
    planted.store.put(units[1].object, planted.store.get(units[1].object)[:-1])
    planted.store.delete(units[2].index)
    planted.store.put("commits/000003.json", planted.store.get("commits/000002.json"))
    planted.store.delete("commits/000004.json")
    found = [str(damage) for damage in verify(planted.store).bad]
    assert len(found) == 6
    length = units[1].length
    assert f"unit 0: {units[0].object} ({units[0].length} bytes) has digest" in found[0]
    assert found[1].endswith(f"in its block at byte {block.offset}")
    assert f"unit 1: {units[1].object} ({length - 1} bytes) has digest" in found[2]
    assert found[3] == f"unit 2: {units[2].index} is missing"
    assert found[4] == "unit 3: commits/000003.json is of another attempt than the manifest's"
    assert found[5] == "unit 4: commits/000004.json is missing"


def test_a_sample_is_a_share_of_the_units_that_the_seed_chooses(plant: Plant) -> None:
    planted = plant(rows=60, sequences_per_shard=2).publish()
    for unit in load_manifest(planted.store).units:
        planted.store.delete(unit.object)

    def sampled(seed: int) -> list[int | None]:
        report = verify(planted.store, sample=0.2, seed=seed)
        assert (report.units, report.units_of_cache) == (6, 30)
        return [damage.unit for damage in report.bad]

    assert sampled(0) == sampled(0)
    assert len(set(sampled(0))) == 6
    assert {unit for seed in range(40) for unit in sampled(seed)} == set(range(30))
    assert verify(planted.store, sample=0.001).units == 1
    assert verify(planted.store, sample=1.0).units == 30


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_sample_that_is_no_share_is_refused(plant: Plant, share: float) -> None:
    with pytest.raises(KdscaleError, match="no share"):
        verify(plant().publish().store, sample=share)


def drop_prior(planted: Planted) -> str:
    (key,) = planted.store.list("prior/")
    planted.damage(key, 40)
    return key


def drop_table(planted: Planted) -> str:
    (key,) = planted.store.list("manifests/units-")
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
def test_damage_to_what_units_share_is_reported_once(
    plant: Plant, harm: Callable[[Planted], str]
) -> None:
    planted = plant().publish()
    key = harm(planted)
    (damage,) = verify(planted.store).bad
    assert (damage.unit, damage.key) == (None, key)
    assert str(damage).startswith(f"{key} ")


def test_no_cache_and_no_such_version(plant: Plant) -> None:
    planted = plant()
    with pytest.raises(KdscaleError, match="holds no cache"):
        verify(planted.store)
    planted.publish()
    with pytest.raises(KdscaleError, match="has no manifest 2"):
        verify(planted.store, version=2)


def replace_unit(planted: Planted, unit: Unit, data: bytes, index: bytes) -> None:
    """Publish other objects as the unit's, with digests that are right."""
    changed = unit.model_copy(
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
    planted.store.put(commit_key(unit.unit), record_bytes(commit))
    publish(planted.store, planted.segment)


def test_right_digests_of_wrong_rows_are_found(plant: Plant) -> None:
    planted = plant().publish()
    unit = load_manifest(planted.store).units[1]
    data, stats = planted.store.get(unit.object), planted.unit(1)[3]
    turned = RowStats(stats.sample_ids[::-1], stats.entropy, stats.nll, stats.length)
    replace_unit(planted, unit, data, encode_index(turned, planted.blocks(1)))
    bad = verify(planted.store).bad
    assert [(d.unit, d.problem.partition(" in its")[0]) for d in bad] == [
        (1, "holds other rows than its index says")
    ] * 3


def test_a_block_that_no_reader_can_decode_is_found(plant: Plant) -> None:
    planted = plant().publish()
    unit = load_manifest(planted.store).units[2]
    first, *others = planted.blocks(2)
    data = bytearray(planted.store.get(unit.object))
    data[first.offset + 8 : first.offset + 40] = bytes(32)
    digest = block_digest(bytes(data[first.offset : first.offset + first.length]))
    blocks = (Block(**first.model_dump() | {"digest": digest}), *others)
    index = decode_index(planted.store.get(unit.index))
    replace_unit(planted, unit, bytes(data), encode_index(index.stats, blocks))
    (damage,) = verify(planted.store).bad
    assert (damage.unit, damage.key[:12]) == (2, "data/000002-")
    assert damage.problem.startswith("cannot be decoded (")


def test_targets_that_are_no_distribution_are_found(plant: Plant) -> None:
    planted = plant(packed=False)
    # Ids have six bits and the vocabulary 50 ids: all ones name an id that there is not.
    wrong = np.where(planted.rows.loss_mask[..., None], np.uint8(255), np.uint8(0))
    planted.payload[16:] = wrong[16:]
    planted.publish()
    bad = verify(planted.store).bad
    assert [(d.unit, d.problem.partition(" in its")[0]) for d in bad] == [
        (2, "holds targets that are no distribution")
    ] * 3


def test_counts_that_do_not_agree_are_found(plant: Plant) -> None:
    planted = plant().publish()
    commit = read_record(Commit, planted.store, commit_key(0))
    more = commit.model_copy(update={"targets": commit.targets + 1})
    planted.store.put(commit_key(0), record_bytes(more))
    publish(planted.store, planted.segment)
    (damage,) = verify(planted.store).bad
    assert damage.problem == (
        f"should have {commit.targets + 1} targets; its index counts {commit.targets}"
    )


def test_an_append_under_way_is_no_damage(plant: Plant) -> None:
    planted = plant().publish()
    more = appended(planted)
    planted.store.delete(commit_key(more.segment.first_unit))
    assert verify(planted.store).bad == []
    assert more.writer.commit(*more.unit(0))
    publish(planted.store, more.segment)
    report = verify(planted.store)
    assert (report.version, report.units, report.blocks, report.bad) == (2, 6, 14, [])
    report = verify(planted.store, version=1)
    assert (report.version, report.units, report.blocks, report.bad) == (1, 3, 9, [])
