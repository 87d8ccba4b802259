"""Checkpoints of a killed prepare, and how the next one continues."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kdscale.config.data import DataConfig, SourceConfig
from kdscale.data import documents
from kdscale.data.cleaning.cleaner import Status, name_hash, text_digest
from kdscale.data.documents import Documents, clean_batch
from kdscale.data.prepare_checkpoint import (
    MOST_BATCHES,
    SINGLES_PER_BATCH,
    Part,
    all_parts,
    clear_work,
    in_batches,
    read_batches,
    read_ends,
    whole_parts,
    write_batches,
)
from kdscale.data.sources.corpus import find_corpus
from kdscale.data.sources.readers import InputShard
from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store

TEXTS = [f"document {n} of the corpus " + "x" * n for n in range(30)]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    lines = [json.dumps({"text": text}) for text in [*TEXTS[:20], "short", *TEXTS[20:]]]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    return DataConfig(train=SourceConfig(kind="jsonl", path=str(tmp_path / "corpus.jsonl")))


def clean(config: DataConfig, store: Store) -> list[int]:
    """Run the task over the only file of the corpus; return the documents of each part."""
    inputs = [
        {name: getattr(shard, name) for name in InputShard.__dataclass_fields__}
        for shard in find_corpus(config.train).inputs
    ]
    item = pa.Table.from_pylist([{"number": 0, "inputs": inputs}])
    [said] = clean_batch(item, work=store, sources=config.sources["train"], config=config)
    found: list[int] = said["documents"].to_pylist()[0]
    return found


def held(work: Store, source: str = "train") -> Documents:
    ends = read_ends(work.child(f"{source}/documents"))
    return Documents(work, source, all_parts(ends, None), here=True)


def test_containers_are_batches_and_single_documents_share_them() -> None:
    def inputs(count: int, reader: str) -> list[InputShard]:
        return [InputShard(reader, str(n), "root", str(n)) for n in range(count)]  # type: ignore[arg-type]

    assert [len(batch) for batch in in_batches(inputs(3, "jsonl"))] == [1, 1, 1]
    many = inputs(SINGLES_PER_BATCH + 1, "file")
    assert in_batches(many) == [many[:-1], many[-1:]]
    most = in_batches(inputs(MOST_BATCHES * 2 + 1, "parquet"))
    assert len(most) <= MOST_BATCHES
    assert {len(batch) for batch in most} == {3}


def test_parts_come_in_order_and_end_at_the_limit() -> None:
    ends = {2: [4], 0: [2, 3], 1: []}
    assert all_parts(ends, None) == [
        Part("00000-00000", 0, 2),
        Part("00000-00001", 2, 5),
        Part("00002-00000", 5, 9),
    ]
    assert all_parts(ends, 5)[-1] == Part("00000-00001", 2, 5)
    assert all_parts(ends, 4)[-1] == Part("00000-00001", 2, 4)


def test_documents_come_back_from_their_parts(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "CLEAN_CHARACTERS", 200)
    work = open_store(str(tmp_path / "work"))
    made = clean(config, work.child("train/documents"))
    assert len(made) > 3
    assert sum(made) == len(TEXTS) + 1
    cleaned = held(work)
    assert len(cleaned) == len(TEXTS) + 1
    facts = cleaned.table()
    kept = facts.status == Status.KEPT
    assert np.flatnonzero(~kept).tolist() == [*range(7), 20]
    assert facts.ranks.tolist() == [name_hash(f"corpus.jsonl#{n}") for n in range(31)]
    texts = list(cleaned.texts(kept))
    assert texts == [text for text in TEXTS if len(text) >= config.min_characters]
    digests = b"".join(text_digest(text) for text in texts)
    assert facts.digests[kept].tobytes() == digests
    assert facts.bands is None
    # One part in the middle, cut by a limit.
    first = all_parts(read_ends(work.child("train/documents")), 15)
    assert list(Documents(work, "train", first, here=True).texts(kept[:15])) == texts[:8]


def test_a_batch_goes_on_after_its_last_whole_part(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "CLEAN_CHARACTERS", 200)
    whole, killed = (open_store(str(tmp_path / name)) for name in ("whole", "killed"))
    made = clean(config, whole)
    for key in whole.list():
        killed.put(key, whole.get(key))
    # A kill between the texts and the facts of part 2.
    for part in range(2, len(made)):
        killed.delete(f"00000-{part:05d}.facts")
    killed.delete("00000.end")
    assert whole_parts(killed, 0) == made[:2]
    assert read_ends(killed) == {}
    before = {entry.key: entry.modified for entry in killed.entries() if "-00001" in entry.key}
    assert len(before) == 2
    assert clean(config, killed) == made
    assert {key: killed.get(key) for key in killed.list()} == {
        key: whole.get(key) for key in whole.list()
    }
    after = {entry.key: entry.modified for entry in killed.entries()}
    assert before.items() <= after.items()


def test_a_task_reads_no_further_than_the_limit(config: DataConfig, tmp_path: Path) -> None:
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write('\n{"no": "text"}\n')
    few = config.train.model_copy(update={"limit": 5})
    store = open_store(str(tmp_path / "work"))
    assert clean(config.model_copy(update={"train": few}), store) == [5]
    with pytest.raises(KdscaleError, match="no field 'text'"):
        clean(config, open_store(str(tmp_path / "other")))


def test_a_damaged_object_is_said_plainly(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    batch = pa.record_batch({"a": [1, 2]})
    write_batches(store, "whole", batch.schema, [batch, batch])
    assert [found.num_rows for found in read_batches(store, "whole")] == [2, 2]
    store.put("half", store.get("whole")[:-20])
    with pytest.raises(KdscaleError, match=r"half in .* is damaged"):
        list(read_batches(store, "half"))


def test_the_work_of_others_is_cleared(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for key in ("work/old/train/a", "work/new/train/a", "rows/a"):
        store.put(key, b"")
    clear_work(store, keep="new")
    assert store.list() == ["rows/a", "work/new/train/a"]
    clear_work(store)
    assert store.list() == ["rows/a"]
