"""The prepare stage on a real Ray: everything from sources to rows and back to text."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from kdscale.config.data import DataConfig, SourceConfig, TokenizerConfig
from kdscale.data.cleaning.cleaner import clean, name_hash
from kdscale.data.prepare import data_identity, prepare
from kdscale.data.rows.manifest import summarise
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.data.tokenizer import train_tokenizer
from kdscale.errors import KdscaleError
from kdscale.store import Store, open_store, upload_folder
from kdscale.types import Rows
from tests.chats import FAMILIES, make_tokenizer
from tests.s3 import S3Server

pytestmark = pytest.mark.ray

DOCUMENTS = 60


@pytest.fixture(scope="module")
def ray_stopped() -> Iterator[None]:
    """Stop Ray after the tests of this module."""
    yield
    ray.shutdown()


@pytest.fixture
def cluster(ray_stopped: None, s3_server: S3Server) -> None:
    """Ray on this machine, shared by the tests; after one that stops it, the next starts it again.

    Its workers can reach the S3 server.
    """
    if not ray.is_initialized():
        os.environ.update(s3_server.env)
        ray.init(num_cpus=2, include_dashboard=False, logging_level="warning")


def text(number: int) -> str:
    return "\n".join(f"line {at} of document {number} says {at * number}" for at in range(number))


def write_corpus(folder: Path) -> Path:
    """Write DOCUMENTS good documents of growing length, and one of each kind that is dropped."""
    folder.mkdir()
    for number in range(1, DOCUMENTS + 1):
        (folder / f"{number:03}.txt").write_text(text(number), newline="\r\n")
    (folder / "short.txt").write_text("x")
    (folder / "latin.txt").write_bytes("é".encode("latin-1") * 50)
    (folder / "twin.txt").write_text(text(7))
    return folder


def config(folder: Path, **changes: Any) -> DataConfig:
    defaults: dict[str, Any] = {
        "train": SourceConfig(kind="text", path=str(folder)),
        "validation_share": 0.2,
        "tokenizer": TokenizerConfig(vocab_size=300),
        "seq_len": 32,
        "overlap": 5,
        "min_characters": 10,
        "evaluation_sequences": 1000,
    }
    return DataConfig(**{**defaults, **changes})


def run(config: DataConfig, store: Store, teacher: Path | None = None) -> dict[str, Any]:
    return prepare(config, store=store, teacher_tokenizer=teacher, progress=lambda *_: None)


def rows_of(prepared: Prepared, split: str) -> Rows:
    table = prepared.split(split)
    return table.take(np.arange(len(table)))


def texts_of(prepared: Prepared, split: str) -> list[str]:
    """Return the documents of a split, joined from the targets of its rows."""
    rows = rows_of(prepared, split)
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_folder() / "tokenizer.json"))
    end = prepared.manifest["tokenizer"]["end_id"]
    documents: dict[int, list[int]] = {}
    inputs = []
    for at in range(len(rows)):
        for segment in range(1, rows.segment_ids[at].max() + 1):
            inside = np.flatnonzero(rows.segment_ids[at] == segment)
            scored = rows.input_ids[at][inside[1:]][rows.loss_mask[at][inside[:-1]]]
            inputs.append((rows.input_ids[at][inside].tolist(), scored.tolist()))
    # A piece belongs to the document whose text so far ends with what they share.
    texts = []
    for ids, scored in inputs:
        context = ids[: len(ids) - len(scored)]
        if context == [end]:
            documents[len(documents)] = list(scored)
        else:
            [number] = [
                number
                for number, so_far in documents.items()
                if so_far[-len(context) :] == context and so_far[-1] != end
            ]
            documents[number] += scored
    for tokens in documents.values():
        assert tokens[-1] == end
        texts.append(tokenizer.decode(tokens[:-1], skip_special_tokens=False))
    return texts


def contents(store: Store) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list()}


def sentences(seed: int, count: int = 12) -> str:
    """Return English text that no other seed gives."""
    words = "the bank said that its new office near the river would open in spring with more staff"
    random = np.random.default_rng(seed)
    lines = (" ".join(random.choice(words.split(), 12)) for _ in range(count))
    return ".\n".join(f"In {seed} {line}" for line in lines)


def test_steps_clean_on_the_cluster_and_say_what_they_did(cluster: None, tmp_path: Path) -> None:
    german = "Der Ausschuss teilte am Dienstag mit, dass die neue Brücke im Sommer geöffnet werde. "
    nearly = sentences(3).replace("spring", "autumn", 1)
    texts = [sentences(n) for n in range(40)]
    texts += [german * 3, nearly, f"<p>{sentences(50)}</p><script>x = 1</script>"]
    texts += [f"{sentences(51)} Write to jane@example.org."]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    alike = sentences(5).replace("river", "lake", 1)
    (tmp_path / "other.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in (alike, sentences(60)))
    )
    train, other = (
        SourceConfig(kind="jsonl", path=str(tmp_path / f"{name}.jsonl"))
        for name in ("train", "other")
    )
    kinds = ("strip_markup", "language", "mask_pii", "near_duplicates")
    chosen = DataConfig.model_validate(
        {
            "train": train,
            "evaluate": {"other": other},
            "cleaning": [{"kind": kind} for kind in kinds],
            "tokenizer": {"vocab_size": 300},
            "seq_len": 64,
            "pack": False,
        }
    )
    store = open_store(str(tmp_path / "prepared"))
    manifest = run(chosen, store)
    assert manifest["sources"]["train"]["steps"] == [
        {"kind": "strip_markup", "dropped": 0, "changed": 1},
        {"kind": "language", "dropped": 1, "changed": 0},
        {"kind": "mask_pii", "dropped": 0, "changed": 1},
    ]
    counts = manifest["sources"]["train"]
    assert (counts["dropped_near_duplicate"], counts["kept"]) == (1, 42)
    # A document that nearly repeats a training document is no evaluation.
    leaks = manifest["sources"]["other"]["leaked"]
    training = " ".join(texts_of(open_prepared(store), "train"))
    assert leaks == (sentences(5) in training)
    assert "jane@example.org" not in training
    assert "script" not in training
    line = dict(summarise(manifest))["train"]
    assert "dropped 1 by language, 1 nearly duplicate" in line
    assert "changed 1 by strip_markup, 1 by mask_pii" in line


def test_a_corpus_becomes_rows_and_rows_the_corpus(cluster: None, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    chosen = config(folder, pack=False)
    low = np.array([name_hash(f"{n:03}.txt") < 0.2 * 2.0**64 for n in range(1, DOCUMENTS + 1)])
    held_out = [text(int(n)) for n in np.flatnonzero(low) + 1]
    training = [text(int(n)) for n in np.flatnonzero(~low) + 1]
    records = [{"text": f"something else entirely, number {n}"} for n in range(9)]
    records += [{"text": training[3] + "  \r\n"}, {"text": held_out[0]}, records[0]]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    other = SourceConfig(kind="jsonl", path=str(tmp_path / "other.jsonl"))
    chosen = chosen.model_copy(update={"evaluate": {"other": other}})
    store = open_store(str(tmp_path / "prepared"))

    manifest = run(chosen, store)

    prepared = open_prepared(store)
    assert prepared.manifest == json.loads(json.dumps(manifest))
    assert prepared.splits == ["train", "validation", "other"]
    assert sorted(texts_of(prepared, "train")) == sorted(training)
    assert sorted(texts_of(prepared, "validation")) == sorted(held_out)
    expected = [*(record["text"] for record in records[:9]), held_out[0]]
    assert texts_of(prepared, "other") == expected
    assert manifest["sources"] == {
        "train": {
            "read": DOCUMENTS + 3,
            "undecodable": 1,
            "dropped_short": 1,
            "dropped_duplicate": 1,
            "dropped_near_duplicate": 0,
            "leaked": 0,
            "kept": DOCUMENTS,
            "steps": [],
        },
        "other": {
            "read": 12,
            "undecodable": 0,
            "dropped_short": 0,
            "dropped_duplicate": 1,
            "dropped_near_duplicate": 0,
            "leaked": 1,
            "kept": 10,
            "steps": [],
        },
    }
    assert "1 undecodable (latin.txt)" in dict(summarise(manifest))["train"]
    for name, texts in (("train", training), ("validation", held_out), ("other", expected)):
        counts, rows = manifest["splits"][name]["counts"], rows_of(prepared, name)
        assert counts["documents"] == len(texts)
        assert counts["rows"] == counts["rows_written"] == len(rows)
        assert counts["targets_written"] == rows.loss_mask.sum()
        size = sum(len(clean(one).encode()) for one in texts)
        assert rows.byte_counts.sum() == pytest.approx(size)
    assert manifest["seq_len"] == 32


def write_talks(path: Path, talks: list[list[str]]) -> None:
    """Write conversations of a user and an assistant."""
    records = [
        {"conversations": [{"from": who, "value": said} for who, said in zip(_TURNS, talk)]}  # noqa: B905
        for talk in talks
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


_TURNS = ("human", "gpt", "human", "gpt")


def test_a_mixture_of_conversations(cluster: None, tmp_path: Path) -> None:
    few = [[f"What is {n} and {n}?", f"It is {2 * n}."] for n in range(100, 120)]
    many = [[f"{n}?", f"{n}!", "Why?", f"No reason in {n}."] for n in range(100, 180)]
    write_talks(tmp_path / "few.jsonl", [*few, ["Say <|im_end|>!", "No."], ["Nobody answers."]])
    write_talks(tmp_path / "many.jsonl", [*many, few[0]])
    train = [
        {"kind": "jsonl", "path": str(tmp_path / "few.jsonl"), "weight": 2},
        {"kind": "jsonl", "path": str(tmp_path / "many.jsonl"), "weight": 1},
    ]
    chosen = DataConfig.model_validate(
        {
            "train": train,
            "chat": {"field": "conversations"},
            "validation_share": 0.1,
            "tokenizer": {"vocab_size": 300},
            "seq_len": 64,
            "min_characters": 1,
        }
    )
    store = open_store(str(tmp_path / "prepared"))
    manifest = run(chosen, store)
    counts = manifest["sources"]["train"]
    first, second = counts["mixture"]
    assert (first["read"], first["usable"], first["kept"]) == (22, 22, 22)
    # What an earlier source has is dropped as a duplicate.
    assert (second["read"], second["usable"]) == (81, 80)
    assert first["bytes"] / second["bytes"] == pytest.approx(2, rel=0.15)
    assert (counts["dropped_duplicate"], counts["kept"]) == (1, 22 + second["kept"])
    prepared = open_prepared(store)
    splits = [manifest["splits"][name]["counts"] for name in ("train", "validation")]
    assert sum(split["documents"] for split in splits) == counts["kept"]
    assert sum(split["unrendered"] for split in splits) == 1
    assert sum(split["without_target"] for split in splits) == 1
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_folder() / "tokenizer.json"))
    said = []
    for name in ("train", "validation"):
        rows = rows_of(prepared, name)
        for ids, mask in zip(rows.input_ids, rows.loss_mask, strict=True):
            targets = tokenizer.decode(ids[1:][mask[:-1]].tolist(), skip_special_tokens=False)
            said += targets.split("<|im_end|>")[:-1]
    kept = {answer for talk in (*few, *many) for answer in talk[1::2]}
    assert set(said) <= kept
    assert len(said) == len(set(said)) == 20 + 2 * second["kept"]
    line = dict(summarise(manifest))[f"source {tmp_path}/many.jsonl"]
    assert line.startswith(f"weight 1: {second['kept']} of 80 documents kept")


def test_turns_that_later_ones_change_are_texts_of_their_own(cluster: None, tmp_path: Path) -> None:
    whole = make_tokenizer(FAMILIES["qwen3"], "bytes", tmp_path / "teacher")
    records = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} + {n}?"},
                {
                    "role": "assistant",
                    "content": f"It is {2 * n}.",
                    "reasoning_content": f"{n} {n}",
                },
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": f"{n} times two.", "reasoning_content": "Sure."},
            ]
        }
        for n in range(100, 120)
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    chosen = DataConfig.model_validate(
        {
            "train": {"kind": "jsonl", "path": str(path)},
            "chat": {},
            "validation_share": 0.1,
            "tokenizer": {"kind": "teacher"},
            "seq_len": 128,
            "min_characters": 1,
        }
    )
    store = open_store(str(tmp_path / "prepared"))
    manifest = prepare(
        chosen, store=store, teacher_tokenizer=tmp_path / "teacher", progress=lambda *_: None
    )
    assert manifest["tokenizer"]["chat"]["training"] == "qwen3"
    lines = dict(summarise(manifest))
    assert lines["chat template"].startswith("kdscale's training template 'qwen3'")
    counts = manifest["splits"]["train"]["counts"]
    assert counts["documents"] == 2 * counts["conversations"]
    share = f"{counts['documents']} texts of {counts['conversations']} conversations"
    assert share in lines["train rows"]
    prepared = open_prepared(store)
    assert prepared.chat_summary == lines["chat template"]
    said = []
    for name in ("train", "validation"):
        rows = rows_of(prepared, name)
        for ids, mask in zip(rows.input_ids, rows.loss_mask, strict=True):
            targets = whole.decode(ids[1:][mask[:-1]])
            said += targets.split("<|im_end|>")[:-1]
    answers = [
        f"<think>\n{each['reasoning_content']}\n</think>\n\n{each['content']}"
        for record in records
        for each in record["messages"][1::2]
    ]
    assert sorted(said) == sorted(answers)
    # The student's tokenizer has the published template.
    assert AutoTokenizer.from_pretrained(prepared.tokenizer_folder()).chat_template == (
        FAMILIES["qwen3"].template
    )


def test_varied_copies_are_for_the_stages_that_ask_for_them(cluster: None, tmp_path: Path) -> None:
    lines = [{"text": sentences(n), "label": "odd" if n % 2 else "even"} for n in range(30)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = DataConfig.model_validate(
        {
            "train": {"kind": "jsonl", "path": str(tmp_path / "train.jsonl")},
            "validation_share": 0.2,
            "labels": {},
            "augment": {"steps": [{"kind": "swap", "share": 0.3}], "copies": 2},
            "tokenizer": {"vocab_size": 300},
            "seq_len": 64,
            "long_documents": "truncate",
        }
    )
    store = open_store(str(tmp_path / "prepared"))
    prepare(
        chosen,
        task="sequence-classification",
        store=store,
        teacher_tokenizer=None,
        progress=lambda *_: None,
    )
    prepared = open_prepared(store)
    assert prepared.evaluation_sets == ["validation"]
    assert len(prepared.training("teacher")) == len(prepared.split("train")) == 24
    table = prepared.training("cache")
    assert table.class_counts == {0: 36, 1: 36}
    rows = table.take(np.arange(len(table)))
    assert len({row.tobytes() for row in rows.input_ids}) == len(table) == 72
    assert np.array_equal(rows.sample_ids, table.sample_ids)
    # A copy has the class of its document.
    assert rows.labels is not None
    assert np.bincount(rows.labels[24:, 0]).tolist() == [24, 24]


def test_the_built_in_sources_and_the_teachers_tokenizer(cluster: None, tmp_path: Path) -> None:
    chosen = DataConfig(
        train=SourceConfig(kind="python-stdlib", limit=40),
        evaluate={"docs": SourceConfig(kind="python-docs", limit=10)},
        tokenizer=TokenizerConfig(kind="teacher"),
        long_documents="truncate",
        seq_len=64,
    )
    teacher = train_tokenizer(["the teacher knows other words"] * 3, 300, tmp_path / "teacher")
    # Some ids are nobody's.
    path = tmp_path / "teacher" / "tokenizer.json"
    found = json.loads(path.read_text())
    vocabulary = found["model"]["vocab"]
    found["model"]["vocab"] = {t: n if n <= 270 else n + 40 for t, n in vocabulary.items()}
    Tokenizer.from_str(json.dumps(found)).save(str(path))
    store = open_store(str(tmp_path / "prepared"))
    manifest = run(chosen, store, tmp_path / "teacher")
    assert manifest["tokenizer"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest["tokenizer"]["vocab_size"] == teacher.vocab_size + 40 > 315
    assert "requested_vocab_size" not in manifest["tokenizer"]
    assert (manifest["sources"]["train"]["read"], manifest["sources"]["docs"]["read"]) == (40, 10)
    counts = manifest["splits"]["train"]["counts"]
    assert counts["truncated"] > 20
    lost = counts["targets_truncated"] + counts["targets_duplicate"]
    assert counts["targets"] + lost == counts["tokens"] - counts["documents"]
    tokenizer = Tokenizer.from_file(str(tmp_path / "teacher" / "tokenizer.json"))
    first = Path(json.__file__).parents[1] / "__future__.py"
    rows = rows_of(open_prepared(store), "train")
    ids = tokenizer.encode(clean(first.read_text()), add_special_tokens=False).ids
    assert [teacher.start_id, *ids[:63]] in rows.input_ids.tolist()


def test_a_limit_takes_the_first_records_of_all_files(cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in range(6):
        lines = [json.dumps({"text": f"file {file} record {at} and so on"}) for at in range(5)]
        (folder / f"{file}.jsonl").write_text("\n".join(lines))
    (folder / "README.md").write_text("Nobody reads me.")
    source = SourceConfig(kind="jsonl", path=str(folder), limit=12)
    store = open_store(str(tmp_path / "prepared"))
    lines = summarise(run(config(folder, train=source), store))
    assert (f"not read in {folder}", "1 of other kinds (README.md)") in lines
    prepared = open_prepared(store)
    found = texts_of(prepared, "train") + texts_of(prepared, "validation")
    expected = [f"file {n // 5} record {n % 5} and so on" for n in range(12)]
    assert sorted(found) == expected


def test_what_the_user_can_mend_is_said_plainly(cluster: None, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    (tmp_path / "bad.jsonl").write_text('{"text": "a good line to begin with"}\n{"body": "x"}\n')
    bad = SourceConfig(kind="jsonl", path=str(tmp_path / "bad.jsonl"))
    store = open_store(str(tmp_path / "prepared"))
    # Found by a task on the cluster.
    with pytest.raises(KdscaleError, match="no field 'text', only body") as caught:
        run(config(folder, train=bad), store)
    assert type(caught.value) is KdscaleError
    # The document of the highest place is a training document for certain.
    last = max((f"{n:03}.txt" for n in range(1, DOCUMENTS + 1)), key=name_hash)
    same = SourceConfig(kind="text", path=str(folder / last))
    with pytest.raises(KdscaleError, match="No document is left of the evaluation set 'same'"):
        run(config(folder, evaluate={"same": same}), store)
    with pytest.raises(KdscaleError, match=r"0 documents are left of data\.train"):
        run(config(folder, min_characters=10**6), store)
    assert not store.exists("manifest.json")


@pytest.mark.s3
def test_from_s3_to_s3(s3_env: S3Server, cluster: None, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    upload_folder(folder, open_store(f"{s3_env.url}/prepare"), "corpus")
    chosen = config(folder)
    local, remote = open_store(str(tmp_path / "p")), open_store(f"{s3_env.url}/prepare/prepared")
    source = SourceConfig(kind="text", path=f"{s3_env.url}/prepare/corpus/*.txt")
    run(chosen, local)
    run(chosen.model_copy(update={"train": source}), remote)
    assert contents(remote) == contents(local)
    prepared = open_prepared(remote)
    np.testing.assert_array_equal(
        rows_of(prepared, "train").input_ids, rows_of(open_prepared(local), "train").input_ids
    )
    files = {path.name: path.read_bytes() for path in prepared.tokenizer_folder().iterdir()}
    assert files == {key: local.get(f"tokenizer/{key}") for key in files}
    assert "tokenizer.json" in files


def test_the_same_input_gives_the_same_bytes(cluster: None, tmp_path: Path) -> None:
    chosen = config(write_corpus(tmp_path / "corpus"), evaluation_sequences=20)
    first, second = (open_store(str(tmp_path / name)) for name in ("first", "second"))
    run(chosen, first)
    ray.shutdown()
    # Another size of cluster cuts the corpus into other blocks.
    ray.init(num_cpus=1, include_dashboard=False, logging_level="warning")
    # An earlier run was killed and left something that is not its own.
    second.put("manifest.json", b"{}")
    second.put("rows/train-00000.arrow", b"half")
    second.put("work/another/train/documents/00000.end", b"[1]")

    def die(done: int, total: int, note: str) -> None:
        if note == "rows of validation":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        prepare(chosen, store=second, teacher_tokenizer=None, progress=die)
    left = {entry.key: entry.modified for entry in second.entries("work/")}
    assert {key.rpartition(".")[2] for key in left} == {"texts", "facts", "end", "json", "tokens"}
    notes, found = [], dict[str, float]()

    def watch(done: int, total: int, note: str) -> None:
        notes.append((done, total, note))
        if note == "rows of validation":
            found.update({entry.key: entry.modified for entry in second.entries("work/")})

    manifest = prepare(chosen, store=second, teacher_tokenizer=None, progress=watch)
    # Nothing that was there has been made again.
    assert left == found
    assert contents(first) == contents(second)
    assert {"manifest.json", "rows/train-00000.arrow", "tokenizer/tokenizer.json"} <= set(
        contents(first)
    )
    assert len(open_prepared(second).split("validation")) == 20
    counts = manifest["splits"]["validation"]["counts"]
    assert counts["rows_written"] == 20 < counts["rows"]
    assert (0, 1, "reading train") in notes
    assert (0, manifest["splits"]["train"]["counts"]["documents"], "rows of train") in notes


def test_bad_names_and_missing_corpora_are_found_before_any_work(tmp_path: Path) -> None:
    ray.shutdown()  # of another test
    folder = write_corpus(tmp_path / "corpus")
    store = open_store(str(tmp_path / "prepared"))
    missing = SourceConfig(kind="text", path=str(tmp_path / "missing"))
    good = SourceConfig(kind="text", path=str(folder))
    for bad, problem in (
        (config(folder, evaluate={"out": missing}), "missing holds no text files"),
        (config(folder, evaluate={"train": good}), "cannot be called 'train'"),
        (config(folder, evaluate={"a/b": good}), "cannot be called 'a/b'"),
    ):
        with pytest.raises(KdscaleError, match=problem):
            run(bad, store)
        with pytest.raises(KdscaleError, match=problem):
            data_identity(bad)
    assert not ray.is_initialized()
    identity = data_identity(config(folder))
    assert identity == data_identity(config(folder))
    assert identity != data_identity(config(folder, overlap=6))
    assert json.loads(json.dumps(identity)) == identity
