"""Inspect tells the facts; verify finds every kind of damage; repair makes it capturable again."""

import numpy as np
import pytest

from kdscale.cache.maintenance import inspect, repair, sample, verify
from kdscale.cache.manifest import load_manifest, publish
from kdscale.cache.reader import CacheReader
from kdscale.cache.writer import committed_units
from kdscale.config.cache import CodecConfig, FullCodec, VaroptCodec
from tests.unit.cache.planted import Plant


def test_inspect_tells_the_facts(plant: Plant) -> None:
    planted = plant().publish()
    facts = inspect(planted.store)
    stored = sum(planted.store.size(key) for key in planted.store.list("data/"))
    stored += sum(planted.store.size(key) for key in planted.store.list("index/"))
    assert facts["identity"] == planted.identity
    assert facts["codec"] == {"kind": "varopt", "k": 4, "head": 2, "head_bits": 8, "vocab_size": 50}
    assert (facts["rows"], facts["positions"], facts["units"], facts["blocks"]) == (23, 368, 3, 9)
    assert facts["targets"] == planted.rows.loss_mask.sum()
    assert facts["bytes"] == stored
    # Two codes of a byte and four ids of six bits.
    assert facts["payload_bytes_per_position"] == 5
    assert facts["bytes_per_position"] == pytest.approx(stored / 368)
    assert facts["version"] == 1
    assert facts["created"].endswith("+00:00")


@pytest.mark.parametrize("config", [VaroptCodec(k=4, head=2), FullCodec()])
def test_sample_shows_context_token_and_targets(plant: Plant, config: CodecConfig) -> None:
    planted = plant(config=config).publish()
    shown = sample(CacheReader(planted.store), lambda ids: " ".join(map(str, ids)), 4)
    assert [item["row"] for item in shown] == [0, 7, 14, 22]
    for item in shown:
        ids = planted.rows.input_ids[item["row"]]
        assert item["context"].split() == [str(token) for token in ids[: item["position"] + 1]]
        assert item["token"] == str(ids[item["position"] + 1])
        text, probability = item["targets"][0]
        assert text == item["token"]
        assert probability == pytest.approx(0.75, abs=1 / 254)


def test_verify_reads_everything_and_finds_nothing_wrong(plant: Plant) -> None:
    planted = plant().publish()
    steps = []
    report = verify(planted.store, workers=2, progress=lambda *at: steps.append(at))
    assert (report.objects, report.blocks, report.bad) == (6, 9, [])
    assert report.bytes == inspect(planted.store)["bytes"]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_verify_names_every_damage(plant: Plant) -> None:
    planted = plant(rows=40).publish()
    units = load_manifest(planted.store).units
    planted.damage(units[0].object, units[0].blocks[2].offset + 30)
    planted.store.put(units[1].object, planted.store.get(units[1].object)[:-1])
    planted.store.delete(units[2].index)
    planted.store.put("commits/000003.json", planted.store.get("commits/000002.json"))
    planted.store.delete("commits/000004.json")
    found = [str(damage) for damage in verify(planted.store).bad]
    assert len(found) == 6
    assert f"unit 0: {units[0].object} has digest" in found[0]
    assert f"in its block at byte {units[0].blocks[2].offset}" in found[1]
    assert f"unit 1: {units[1].object} has digest" in found[2]
    assert found[3] == f"unit 2: {units[2].index} is missing"
    assert found[4] == "unit 3: commits/000003.json is of another attempt than the manifest's"
    assert found[5] == "unit 4: commits/000004.json is missing"


def test_damaged_unit_is_captured_again_after_repair(plant: Plant) -> None:
    planted = plant().publish()
    unit = load_manifest(planted.store).units[1]
    planted.damage(unit.object, unit.blocks[0].offset + 64)
    assert repair(planted.store, verify(planted.store).bad) == [1]
    assert committed_units(planted.store) == {0, 2}
    assert planted.writer.commit(*planted.unit(1))
    assert publish(planted.store, planted.identity, planted.plan).version == 2
    assert verify(planted.store).bad == []
    assert np.array_equal(CacheReader(planted.store).read(np.arange(23)).payload, planted.payload)
