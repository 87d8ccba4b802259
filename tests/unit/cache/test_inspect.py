"""Inspect tells the facts of a manifest; a sample shows what the teacher said."""

import pytest

from kdscale.cache.commit.manifest import publish
from kdscale.cache.maintain.inspect import inspect, sample
from kdscale.cache.read.reader import CacheReader
from kdscale.config.cache import CodecConfig, FullCodec, VaroptCodec
from kdscale.errors import KdscaleError
from tests.unit.cache.planted import Plant
from tests.unit.cache.test_commit import appended


def test_inspect_tells_the_facts(plant: Plant) -> None:
    planted = plant().publish()
    facts = inspect(planted.store)
    folders = ("data/", "index/", "prior/", "manifests/shards-")
    sizes = {f: sum(map(planted.store.size, planted.store.list(f))) for f in folders}
    stored = sum(sizes.values())
    assert facts["identity"] == planted.identity
    assert facts["codec"] == {"kind": "varopt", "k": 4, "head": 2, "head_bits": 8, "vocab_size": 50}
    assert (facts["rows"], facts["positions"], facts["shards"], facts["chunks"]) == (23, 368, 3, 9)
    assert (facts["version"], facts["generations"]) == (1, 1)
    assert facts["targets"] == planted.rows.loss_mask.sum()
    assert (facts["bytes"], facts["prior_bytes"]) == (stored, sizes["prior/"])
    # Two codes of a byte and four ids of two.
    assert facts["payload_bytes_per_position"] == 10
    assert facts["bytes_per_position"] == pytest.approx(stored / 368)
    assert facts["created"].endswith("+00:00")


def test_inspect_of_a_version(plant: Plant) -> None:
    planted = plant().publish()
    first = inspect(planted.store)
    publish(planted.store, appended(planted).generation)
    latest = inspect(planted.store)
    # The ten new rows are two shards of four rows and one of two, in chunks of three.
    assert (latest["version"], latest["generations"], latest["shards"]) == (2, 2, 6)
    assert (latest["rows"], latest["chunks"]) == (33, 14)
    assert inspect(planted.store, version=1) == first
    with pytest.raises(KdscaleError, match="has no manifest 3"):
        inspect(planted.store, version=3)


def test_a_cache_that_is_not_packed_has_no_prior(plant: Plant) -> None:
    assert inspect(plant(packed=False).publish().store)["prior_bytes"] == 0


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
