"""Statistics of a cache add up, and agree with the rows they are of."""

import numpy as np
import pyarrow as pa
import pytest

from kdscale.cache.commit.manifest import load_manifest, publish
from kdscale.cache.maintain.inspect import inspect
from kdscale.cache.maintain.stats import stats
from kdscale.config.cache import CodecConfig, FullCodec, VaroptCodec
from tests.unit.cache.planted import Plant
from tests.unit.cache.test_commit import appended


@pytest.mark.parametrize("config", [VaroptCodec(k=4, head=2), FullCodec()])
def test_parts_add_up_to_all_bytes(plant: Plant, config: CodecConfig) -> None:
    planted = plant(config=config, rows=60, sequences_per_shard=20).publish()
    parts, facts = stats(planted.store)["bytes_per_position"], inspect(planted.store)
    whole = parts.pop("all")
    assert whole == facts["bytes_per_position"]
    assert sum(parts.values()) == pytest.approx(whole)
    for part, folder in (("index", "index/"), ("prior", "prior/"), ("manifest", "manifests/shard")):
        size = sum(map(planted.store.size, planted.store.list(folder)))
        assert parts[part] == pytest.approx(size / (60 * 16))


def test_the_payload_s_part_is_that_of_its_column(plant: Plant) -> None:
    planted = plant(config=FullCodec(), rows=60, sequences_per_shard=20).publish()
    parts = stats(planted.store)["bytes_per_position"]
    # What zstd makes of the column alone, 300 bytes of an Arrow message beside it.
    sizes = []
    for shard in load_manifest(planted.store).shards:
        with pa.ipc.open_file(planted.store.get(shard.object)) as file:
            for number in range(file.num_record_batches):
                column = file.get_batch(number)["payload"].buffers()[1]
                sizes.append(len(pa.Codec("zstd", 1).compress(column, asbytes=True)))
    assert parts["payload"] * 60 * 16 == pytest.approx(sum(sizes), rel=0.05)


def test_rows_are_spread_as_they_are(plant: Plant) -> None:
    planted = plant(rows=60).publish()
    planted_stats, found = planted.stats, stats(planted.store)["row_statistics"]
    assert (found["rows"], found["rows_without_targets"]) == (60, 0)
    for name, values in (
        ("entropy", planted_stats.entropy),
        ("nll", planted_stats.nll),
        ("targets", planted_stats.length),
    ):
        ascending = np.sort(values)
        assert found[name]["min"] == ascending[0]
        assert found[name]["max"] == ascending[-1]
        assert found[name]["p50"] == pytest.approx((ascending[29] + ascending[30]) / 2)
        assert found[name]["mean"] == pytest.approx(values.mean())
        assert found[name]["p5"] <= found[name]["p25"] <= found[name]["p75"] <= found[name]["p95"]


def test_rows_without_targets_count_for_no_entropy(plant: Plant) -> None:
    planted = plant()
    planted.rows.loss_mask[:5] = False
    planted.payload[:5] = 0
    planted.stats.length[:5] = 0
    planted.stats.entropy[:5] = np.nan
    planted.publish()
    found = stats(planted.store)["row_statistics"]
    assert (found["rows"], found["rows_without_targets"]) == (23, 5)
    assert found["entropy"]["mean"] == pytest.approx(planted.stats.entropy[5:].mean())
    assert found["targets"]["min"] == 0


def test_shards_versions_and_what_lies_about(plant: Plant) -> None:
    planted = plant().publish()
    shards = load_manifest(planted.store).shards
    more = appended(planted)
    planted.store.put("data/000001-0123456789abcdef.arrow", b"stray")
    found = stats(planted.store)
    assert found["versions"] == [1]
    assert found["shards"]["count"] == 3
    assert found["shards"]["committed_beyond_manifest"] == 3
    sizes = [shard.length for shard in shards]
    assert (found["shards"]["bytes"]["min"], found["shards"]["bytes"]["max"]) == (
        min(sizes),
        max(sizes),
    )
    assert found["shards"]["bytes"]["mean"] == pytest.approx(sum(sizes) / 3)
    assert found["unnamed"] == {"objects": 1, "bytes": 5}
    publish(planted.store, more.generation)
    found = stats(planted.store)
    assert (found["versions"], found["rows"]) == ([1, 2], 33)
    assert found["shards"]["committed_beyond_manifest"] == 0
