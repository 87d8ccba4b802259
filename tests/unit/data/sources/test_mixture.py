"""Mixtures: shares of the text as the weights say, nothing repeated, the same choice every time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.config.data import DataConfig, WeightedSource
from kdscale.data.cleaning.cleaner import Status, name_hash
from kdscale.data.prepare import data_identity
from kdscale.data.rows.manifest import summarise
from kdscale.data.rows.pack import RowCounts
from kdscale.data.rows.selection import (
    DocumentTable,
    FilterResult,
    filter_documents,
    mix,
    mixture_bytes,
)
from kdscale.data.sources.corpus import find_corpus
from kdscale.data.sources.readers import read_shard
from kdscale.errors import KdscaleError
from tests.unit.data.tables import table


def facts(sizes: list[list[int]]) -> DocumentTable:
    """Documents of given sizes in each source, all of them different."""
    numbers = np.repeat(np.arange(len(sizes)), [len(own) for own in sizes])
    count = len(numbers)
    return table(
        count,
        ranks=np.array([name_hash(str(at)) for at in range(count)], np.uint64),
        sizes=np.array([size for own in sizes for size in own], np.int64),
        sources=numbers.astype(np.uint32),
    )


def sources(*weights: float) -> list[WeightedSource]:
    return [
        WeightedSource(kind="text", path=f"s{number}", weight=weight)
        for number, weight in enumerate(weights)
    ]


def mixed(sizes: list[list[int]], *weights: float) -> FilterResult:
    found = facts(sizes)
    return mix(filter_documents(found), found, sources(*weights))


SIZES = st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=60), min_size=1, max_size=4)


@settings(deadline=None)
@given(SIZES, st.data())
def test_each_source_has_its_share_and_one_of_them_is_whole(
    sizes: list[list[int]], data: st.DataObject
) -> None:
    weights = [data.draw(st.floats(0.05, 20)) for _ in sizes]
    shares = mixed(sizes, *weights).mixture
    wanted = mixture_bytes([sum(own) for own in sizes], weights)
    for own, share, goal in zip(sizes, shares, wanted, strict=True):
        assert share.read == share.usable == len(own)
        # To the document that would be too much, but one at least.
        assert share.bytes <= goal + 1 or share.kept == 1
        assert share.kept == len(own) or share.bytes + max(own) > goal
    assert any(share.kept == share.usable for share in shares)


def test_shares_of_the_text_and_not_of_documents() -> None:
    selection = mixed([[10] * 1000, [100] * 500], 3, 1)
    first, second = selection.mixture
    assert (first.kept, first.bytes) == (1000, 10_000)
    assert (second.kept, second.bytes) == (33, 3300)
    assert selection.kept.sum() == selection.counts["kept"] == 1033
    assert selection.counts["read"] == 1500


def test_the_choice_follows_from_names_and_hardly_from_what_is_added() -> None:
    few, more = ([[10] * count, [10] * 100] for count in (1000, 1010))
    before, again, after = mixed(few, 1, 2), mixed(few, 1, 2), mixed(more, 1, 2)
    assert before.kept.tolist() == again.kept.tolist()
    # Of 1,000 documents 50 are kept, of 1,010 too; the first ones are the same.
    moved = before.kept[:1000] ^ after.kept[:1000]
    assert moved.sum() <= 2


def test_duplicates_and_dropped_documents_are_in_no_share() -> None:
    found = facts([[10] * 4, [10] * 4])
    digests = found.digests.copy()
    digests[4] = digests[0]
    status = found.status.copy()
    status[7] = Status.SHORT
    found = replace(found, digests=digests, status=status)
    selection = mix(filter_documents(found), found, sources(1, 1))
    assert [(share.read, share.usable, share.kept) for share in selection.mixture] == [
        (4, 4, 2),
        (4, 2, 2),
    ]
    assert selection.kept[4:].tolist() == [False, True, True, False]
    none = replace(found, status=np.where(found.sources == 1, Status.SHORT, found.status))
    with pytest.raises(KdscaleError, match="No document is left of 's1'"):
        mix(filter_documents(none), none, sources(1, 1))


def config(folder: Path, *weights: float) -> DataConfig:
    train = [
        {"kind": "text", "path": str(folder / "a"), "weight": weights[0]},
        {"kind": "jsonl", "path": str(folder / "b.jsonl"), "text_field": "body"},
    ]
    return DataConfig.model_validate({"train": train})


def write_sources(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "one.txt").write_text("one")
    (folder / "b.jsonl").write_text('{"body": "two"}\n{"body": "three"}\n')


def test_a_corpus_of_several_sources(tmp_path: Path) -> None:
    write_sources(tmp_path)
    chosen = config(tmp_path, 2)
    corpus = find_corpus(*chosen.sources["train"])
    assert [shard.source for shard in corpus.inputs] == [0, 1]
    texts = [
        document.content
        for shard in corpus.inputs
        for document in read_shard(shard, corpus.sources[shard.source])
    ]
    assert texts == [b"one", "two", "three"]
    assert corpus.local
    assert corpus.limit is None


def test_weights_and_each_source_count_in_the_datas_name(tmp_path: Path) -> None:
    write_sources(tmp_path)
    first, other = (data_identity(config(tmp_path, weight)) for weight in (1, 2))
    assert first["sources"] == other["sources"]
    assert len(first["sources"]["train"]) == 2
    assert first["config"] != other["config"]
    # A single source is called what it was called before there were mixtures.
    alone = {"kind": "text", "path": str(tmp_path / "a")}
    identity = data_identity(DataConfig.model_validate({"train": alone}))
    assert "weight" not in identity["config"]["train"]
    assert identity["sources"]["train"]["files"] == 1


def test_a_limit_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="`limit` of 'jsonl' cannot stand in a mixture"):
        WeightedSource(kind="jsonl", path="a", limit=3)
    assert WeightedSource(kind="huggingface", path="a/b", limit=3).limit == 3


def test_the_summary_says_what_each_source_gave() -> None:
    selection = mixed([[10] * 4, [10] * 2], 1, 1)
    source = selection.counts | {"mixture": [vars(share) for share in selection.mixture]}
    written = {"rows_written": 1, "padding_share": 0.0}
    manifest = {
        "sources": {"train": source},
        "tokenizer": {"vocab_size": 9},
        "splits": {"train": {"counts": vars(RowCounts()) | written}},
    }
    lines = dict(summarise(manifest))
    assert lines["train"] == "read 6 documents, kept 4"
    assert lines["source s0"] == "weight 1: 2 of 4 documents kept, 20 bytes; 4 read"
    assert lines["source s1"] == "weight 1: 2 of 2 documents kept, 20 bytes; 2 read"
