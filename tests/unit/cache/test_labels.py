"""Rows that bring their labels: in a shard, a chunk's file, a mixture and a subset."""

from pathlib import Path

import numpy as np
import pytest

from kdscale.cache.maintain.export import decode_columns
from kdscale.cache.maintain.inspect import sample
from kdscale.cache.maintain.verify import verify
from kdscale.cache.read.concat import ConcatReader
from kdscale.cache.read.disk_cache import DiskCache
from kdscale.cache.read.loader import CacheLoader, read_batches
from kdscale.cache.read.order import EpochOrder
from kdscale.cache.read.reader import CacheReader
from kdscale.cache.read.subset import SubsetReader, known_labels
from kdscale.cache.rows import CachedRows
from kdscale.errors import KdscaleError
from kdscale.store import open_store
from tests.unit.cache.planted import Planted, assert_same_rows, make_planted


def plant(folder: Path, *, rows: int = 23, labelled: bool = True) -> Planted:
    return make_planted(open_store(str(folder)), rows=rows, labelled=labelled).publish()


def assert_rows(found: CachedRows, planted: Planted, at: np.ndarray) -> None:
    assert_same_rows(found.rows, planted.rows.take(at))
    assert np.array_equal(found.payload, planted.payload[at])


@pytest.mark.parametrize("has_disk", [False, True])
def test_labels_come_back_in_any_order(tmp_path: Path, has_disk: bool) -> None:
    planted = plant(tmp_path / "cache")
    at = np.array([22, 0, 7, 7, 13])
    for _ in range(2):
        # The second time from the local disk.
        disk = DiskCache(tmp_path / "chunks", 1 << 20) if has_disk else None
        assert_rows(CacheReader(planted.store, disk=disk).read(at), planted, at)
    assert verify(planted.store).bad == []


def test_batches_read_together_keep_their_labels(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    orders = [np.array([n, 22 - n]) for n in range(10)]
    found = list(read_batches(CacheReader(planted.store), orders, prefetch=6))
    for batch, order in zip(found, orders, strict=True):
        assert_rows(batch, planted, order)


def test_a_mixture_keeps_labels_and_refuses_caches_without(tmp_path: Path) -> None:
    one, other = plant(tmp_path / "a"), plant(tmp_path / "b", rows=10)
    mixed = ConcatReader([CacheReader(one.store), CacheReader(other.store)], [1, 1])
    found = mixed.read(np.array([22, 23]))
    assert one.rows.labels is not None
    assert other.rows.labels is not None
    assert found.rows.labels is not None
    assert np.array_equal(found.rows.labels, [one.rows.labels[22], other.rows.labels[0]])
    plain = plant(tmp_path / "c", labelled=False)
    with pytest.raises(KdscaleError, match=r"task: .masked-lm., .causal-lm."):
        ConcatReader([CacheReader(one.store), CacheReader(plain.store)], [1, 1])


def test_a_subset_is_a_cache_of_its_own(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    reader = CacheReader(planted.store)
    chosen = np.array([3, 4, 9, 21])
    subset = SubsetReader(reader, chosen)
    assert len(subset) == 4
    assert_rows(subset.read(np.array([3, 0])), planted, np.array([21, 3]))
    assert np.array_equal(subset.statistics.nll, planted.stats.nll[chosen])
    assert (subset.seq_len, subset.codec, subset.row_bytes) == (
        *(reader.seq_len, reader.codec, reader.row_bytes),
    )
    order = EpochOrder(4, seed=0, chunk_rows=3, window_chunks=None)
    first = next(iter(CacheLoader(subset, order.batches(4)))).sequences
    assert sorted(first.rows.input_ids[:, 0]) == sorted(planted.rows.input_ids[chosen, 0])


def test_rows_that_the_teacher_was_not_scored_on_have_no_label(tmp_path: Path) -> None:
    planted = make_planted(open_store(str(tmp_path)), labelled=True)
    planted.stats.nll[[2, 5]] = np.nan
    planted.publish()
    known = known_labels(CacheReader(planted.store))
    assert np.flatnonzero(~known).tolist() == [2, 5]
    assert verify(planted.store).bad == []


def test_a_sample_shows_labels_and_not_the_next_tokens(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    shown = sample(CacheReader(planted.store), lambda ids: " ".join(map(str, ids)), 3)
    assert planted.rows.labels is not None
    for each in shown:
        assert each["token"] == str(planted.rows.labels[each["row"], each["position"]])


def test_a_sample_of_a_classifier_shows_classes(tmp_path: Path) -> None:
    planted = make_planted(open_store(str(tmp_path)), labelled=True)
    planted.identity["classes"] = [f"class {number}" for number in range(50)]
    planted.publish()
    (first, *_) = sample(CacheReader(planted.store), lambda ids: " ".join(map(str, ids)), 3)
    assert planted.rows.labels is not None
    assert first["token"] == f"class {planted.rows.labels[first['row'], first['position']]}"
    assert first["targets"][0][0].startswith("class ")
    assert len(first["context"].split()) == planted.rows.input_ids.shape[1]


def test_labels_are_exported(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    reader = CacheReader(planted.store)
    columns = decode_columns(reader.read(np.arange(5)), reader.codec)
    assert planted.rows.labels is not None
    assert np.array_equal(columns["labels"], planted.rows.labels[:5])
    plain = CacheReader(plant(tmp_path / "plain", labelled=False).store)
    assert "labels" not in decode_columns(plain.read(np.arange(5)), plain.codec)
