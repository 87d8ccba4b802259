"""Distilling into a student with its own tokenizer: data, losses, ranks, resuming, evaluation."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kdscale.cache.read.reader import CacheReader
from kdscale.config.student import StudentConfig
from kdscale.config.teacher import ModelConfig
from kdscale.data.token_bytes import TokenBytes
from kdscale.distill import objective
from kdscale.distill.aligned_reader import AlignedReader
from kdscale.distill.alignment import TokenizerPair
from kdscale.distill.alignment.student_data import AlignedPrepared
from kdscale.distill.curriculum import measure_gap
from kdscale.distill.student_tokenizer import keep_own_tokenizer
from kdscale.distributed.rank import Rank
from kdscale.errors import KdscaleError
from kdscale.export import Format
from kdscale.export.export import export
from kdscale.export.source import find_source
from kdscale.models.head import ModelWithHead
from kdscale.models.hf_folder import read_marker
from kdscale.models.load import build_model, load_model, make_config
from kdscale.preflight import preflight
from kdscale.report import compare
from kdscale.report.load import load_report_data
from kdscale.report.markdown import render_markdown
from kdscale.report.pages import render_report
from kdscale.run.finished_run import FinishedRun
from kdscale.store import open_store
from tests.unit.distill.whole_run import TEXTS, WholeRun, another, make_run, write_tokenizer

LOSS = {"kd_weight": {"kind": "constant", "start": 0.7}}
OWN = {"distill__tokenizer": "student", "distill__loss": LOSS}
ROOM = 160
"""Tokens of a sequence that has room for any of the texts."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """Return a run with the teacher's tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    return make_run(folder, data__seq_len=ROOM, distill__loss=LOSS).distill()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer with fewer ids than the teacher's."""
    folder = tmp_path_factory.mktemp("tokenizer") / "own"
    write_tokenizer(folder, 330, TEXTS["train"])
    return folder


@pytest.fixture(scope="module")
def own(base: WholeRun, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """Return a student with that tokenizer, distilled and evaluated."""
    folder = tmp_path_factory.mktemp("own")
    changes = {**OWN, "data__seq_len": ROOM, "distill__seq_len": 2 * ROOM}
    evaluate = {"speed": {"turns": 1, "sequences": 2, "new_tokens": 4}, "teacher_sharding": "none"}
    evaluate["samples"] = {"prompts": 2, "prompt_tokens": 8, "new_tokens": 6}
    run = another(
        folder, base, distill__student__tokenizer=str(tokenizer), evaluate=evaluate, **changes
    )
    return run.distill().evaluate()


def aligned(run: WholeRun) -> AlignedPrepared:
    kept = run.run.student_tokenizer
    assert kept is not None
    return AlignedPrepared(run.run.prepared, kept)


def reader(run: WholeRun) -> CacheReader:
    return CacheReader(run.run.cache_stores[0][0])


def losses(run: WholeRun, stage: str, name: str = "train/loss") -> list[float]:
    return [line[name] for line in run.lines(stage)]


@pytest.mark.parametrize("codec", ["varopt", "full"])
def test_with_the_teachers_tokenizer_every_loss_is_the_ordinary_runs(
    codec: str, base: WholeRun, tmp_path: Path
) -> None:
    if codec == "full":
        whole = {"cache__codec": {"kind": "full"}, "data__seq_len": ROOM}
        base = make_run(tmp_path / "base", distill__loss=LOSS, **whole).distill()
    place = str(base.run.prepared.tokenizer_folder())
    own = another(
        tmp_path,
        base,
        data__seq_len=ROOM,
        cache__codec=base.run.config.cache.codec.model_dump(),
        distill__student__tokenizer=place,
        **OWN,
    ).distill()
    for stage in ("distill", "baseline"):
        for name in ("train/loss", "train/ce_loss", "train/gradient_norm", "train/batch_digest"):
            expected = losses(base, stage, name)
            assert losses(own, stage, name) == pytest.approx(expected, rel=2e-5), (stage, name)
    assert losses(own, "distill", "train/target_share") == [1.0] * 6
    assert losses(own, "distill", "cut_share") == [0.0] * 6
    assert all("train/kl" not in line for line in own.lines("distill"))


def test_the_students_sequences_are_the_same_text_and_have_the_payload_of_their_source(
    own: WholeRun,
) -> None:
    cached, data = reader(own), aligned(own)
    indices = np.array([3, 0, 3])
    theirs = cached.read(indices)
    found = AlignedReader(cached, data.aligner, data.seq_len).read(indices)
    mine = data.aligner.convert(theirs.rows)
    assert np.array_equal(found.rows.input_ids, mine.rows.input_ids)
    assert np.array_equal(found.has_target, mine.source >= 0)
    assert 0.3 < found.has_target[found.rows.loss_mask].mean() < 1
    assert found.rows.byte_counts == pytest.approx(theirs.rows.byte_counts)
    for row, position in zip(*np.nonzero(found.has_target), strict=True):
        expected = theirs.payload[row, mine.source[row, position]]
        assert np.array_equal(found.payload[row, position], expected)
    info, folder = data.tokenizer.info, data.tokenizer_folder()
    tokens = TokenBytes.of(folder / "tokenizer.json", info)
    teachers = TokenBytes.of(
        data.teachers.tokenizer_folder() / "tokenizer.json", data.teachers.tokenizer_info
    )
    for row in range(len(indices)):
        ids, segments = found.rows.input_ids[row], found.rows.segment_ids[row]
        text = tokens.spell(ids[segments > 0])
        before = theirs.rows.segment_ids[row] > 0
        assert text == teachers.spell(theirs.rows.input_ids[row][before])


def test_a_student_learns_from_targets_and_labels_and_its_baseline_from_labels(
    own: WholeRun,
) -> None:
    student, baseline = own.lines("distill"), own.lines("baseline")
    assert [line["tokens"] for line in student] == [line["tokens"] for line in baseline]
    assert student[0]["train/ce_loss"] == pytest.approx(baseline[0]["train/ce_loss"], rel=1e-6)
    assert student[-1]["train/ce_loss"] != baseline[-1]["train/ce_loss"]
    assert all(0.3 < line["train/target_share"] < 1 for line in student)


def test_the_gap_is_in_nats_a_token_of_the_teachers(own: WholeRun) -> None:
    cached, data = reader(own), aligned(own)
    marker = read_marker(own.run.output.child("student"))
    assert marker is not None
    model = load_model(marker.local())
    worker = Rank(0, 1, torch.device("cpu"))
    wrapped = ModelWithHead(model, data.outputs)
    wrapped(ModelWithHead.detect_head, worker.device)
    found = measure_gap(wrapped, AlignedReader(cached, data.aligner, data.seq_len), worker, 2)
    rows = data.aligner.convert(cached.read(np.arange(len(cached))).rows).rows
    for number in (0, len(cached) - 1):
        total = 0.0
        for segment in range(1, int(rows.segment_ids[number].max()) + 1):
            at = rows.segment_ids[number] == segment
            ids = torch.from_numpy(rows.input_ids[number][at]).long()[None]
            with torch.no_grad():
                logits = model(ids).logits[0, :-1, : data.vocab_size]
            each = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
            total += float(each[torch.from_numpy(rows.loss_mask[number][at][:-1])].sum())
        stats = cached.statistics
        expected = total / stats.length[number] - stats.nll[number]
        assert found[number] == pytest.approx(expected, rel=1e-4)


def test_text_without_room_is_noted_before_the_run_and_a_pair_without_targets_refused(
    base: WholeRun,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {**OWN, "data__seq_len": ROOM, "distill__seq_len": 24}
    short = another(tmp_path, base, distill__student__tokenizer=str(tokenizer), **changes)
    config = short.run.config
    notes = preflight(config, ["distill"]).notes
    (note,) = [note for note in notes if "no room" in note]
    data = aligned(short)
    train = data.teachers.training("cache")
    made = data.aligner.convert(train.take(np.arange(len(train))))
    cut = made.coverage.cut_bytes
    assert note.startswith(f"{cut / (made.rows.byte_counts.sum() + cut):.1%} of the text")
    build = TokenizerPair.build

    def strangers(teacher: TokenBytes, student: TokenBytes) -> TokenizerPair:
        pair = build(teacher, student)
        return replace(pair, teacher_classes=np.full_like(pair.teacher_classes, -1))

    monkeypatch.setattr(TokenizerPair, "build", strangers)
    with pytest.raises(KdscaleError, match=r"None of .* positions of .* sequences has a target"):
        preflight(config, ["distill"])


@pytest.mark.dist
def test_two_ranks_train_as_one(
    own: WholeRun, base: WholeRun, tokenizer: Path, tmp_path: Path
) -> None:
    changes = {**OWN, "data__seq_len": ROOM, "distill__seq_len": 2 * ROOM}
    two = another(tmp_path, base, distill__student__tokenizer=str(tokenizer), **changes)
    two.groups.ranks = 2
    two.distill()
    for stage in ("distill", "baseline"):
        assert losses(two, stage) == pytest.approx(losses(own, stage), rel=1e-4)
    shares = losses(own, "distill", "train/target_share")
    assert losses(two, "distill", "train/target_share") == pytest.approx(shares)


def test_a_run_that_was_killed_resumes_to_the_same_student(
    own: WholeRun,
    base: WholeRun,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {**OWN, "data__seq_len": ROOM, "distill__seq_len": 2 * ROOM}
    again = another(tmp_path, base, distill__student__tokenizer=str(tokenizer), **changes)
    call = objective.DistillationLoss.__call__

    def killed(loss: Any, model: Any, batch: Any, step: int) -> Any:
        if step == 4:
            raise RuntimeError("killed")
        return call(loss, model, batch, step)

    with monkeypatch.context() as patched:
        patched.setattr(objective.DistillationLoss, "__call__", killed)
        with pytest.raises(RuntimeError, match="killed"):
            again.distill()
    again.distill()
    weights = [load_model(str(run.run.output.local_path("student"))) for run in (own, again)]
    for one, other in zip(*(model.parameters() for model in weights), strict=True):
        assert torch.equal(one, other)


def naive_bits(folder: Path) -> Iterator[tuple[float, int]]:
    """Yield nats and bytes of each held-out text, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS["validation"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            mean = float(model(input_ids=whole, labels=whole).loss)
        yield mean * (whole.shape[1] - 1), len(text.encode())


def test_a_loaded_student_keeps_its_tokenizer_and_is_scored_before_training_too(
    base: WholeRun, tokenizer: Path, tmp_path: Path
) -> None:
    folder, own = tmp_path / "loaded", AutoTokenizer.from_pretrained(tokenizer)
    special = {f"{role}_token_id": own.eos_token_id for role in ("bos", "eos", "pad")}
    assert base.run.config.teacher.model is not None
    build_model(
        make_config(base.run.config.teacher.model, len(own), special, ROOM), 9
    ).save_pretrained(folder)
    own.save_pretrained(folder)
    changes = {**OWN, "data__seq_len": ROOM, "distill__seq_len": 2 * ROOM}
    run = another(tmp_path / "run", base, distill__student={"load": str(folder)}, **changes)
    preflight(run.run.config, ["distill", "evaluate"])
    results = run.distill().evaluate().results
    nats, bytes_ = map(sum, zip(*naive_bits(folder), strict=True))
    before = results["models"]["before"]["domains"]["validation"]["bits_per_byte"]
    assert before == pytest.approx(nats / math.log(2) / bytes_, rel=1e-5)
    assert results["models"]["student"]["domains"]["validation"]["bits_per_byte"] < before


@pytest.mark.parametrize("name", ["teacher", "student", "baseline"])
def test_bits_per_byte_are_those_of_transformers_on_the_raw_text(name: str, own: WholeRun) -> None:
    marker = read_marker(own.run.model_store(name))
    assert marker is not None
    nats, bytes_ = map(sum, zip(*naive_bits(Path(marker.local())), strict=True))
    found = own.results["models"][name]["domains"]["validation"]
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / bytes_, rel=1e-5)
    assert found["loss"] * found["tokens"] == pytest.approx(nats, rel=1e-5)
    assert not {"agreement_top1", "kl_teacher_student", "overlap_top10"} & set(found)


def test_the_gap_is_in_bits_a_byte_and_the_share_of_targets_is_reported(own: WholeRun) -> None:
    results = own.results
    teacher, student, baseline = (
        results["models"][name]["domains"]["validation"]["bits_per_byte"]
        for name in ("teacher", "student", "baseline")
    )
    gap = results["gap_recovered"]["validation"]
    if baseline > teacher:
        assert gap == pytest.approx((baseline - student) / (baseline - teacher))
    else:
        assert gap is None
    alignment = results["alignment"]
    data = aligned(own)
    assert (alignment["student_ids"], alignment["seq_len"]) == (data.vocab_size, 2 * ROOM)
    train = data.teachers.training("cache")
    made = data.aligner.convert(train.take(np.arange(len(train))))
    share = (made.source >= 0)[made.rows.loss_mask].mean()
    assert alignment["sets"]["train"]["share"] == pytest.approx(share)
    assert set(alignment["sets"]) == {"train", "validation"}
    assert {"words", "digits", "non-ASCII"} <= set(alignment["sets"]["train"]["kinds"])
    assert set(results["speed"]["models"]) == {"teacher", "student"}
    texts = results["samples"]["texts"]
    assert all(set(text["models"]) == {"teacher", "student", "baseline"} for text in texts)


def test_report_card_and_comparison_speak_of_bits_a_byte(own: WholeRun) -> None:
    found = load_report_data(own.run.output)
    summary = render_markdown(found)
    assert "Positions with a target of the teacher's" in summary
    assert "Bits/byte" in summary
    page = render_report(found)
    assert "bits per byte" in page.lower()
    assert "not defined" in page
    names = [each.name for each in compare.figures([found, found], "validation")]
    assert "Student's loss, bits/byte" in names
    assert "Positions with a target" in names
    card = find_source(own.run.output.url, "student").card
    assert f"its own, of {aligned(own).vocab_size} ids" in card


def test_the_published_student_has_its_own_tokenizer(own: WholeRun, tokenizer: Path) -> None:
    run = FinishedRun(own.run.output)
    for name in ("student", "baseline"):
        published = AutoTokenizer.from_pretrained(run.model_folder(name))
        assert published.get_vocab() == AutoTokenizer.from_pretrained(tokenizer).get_vocab()
        shape = load_model(run.model_folder(name)).config
        assert shape.vocab_size == len(published)
        assert shape.eos_token_id == published.eos_token_id
        assert run.data_of(name).vocab_size == len(published)
    assert run.data_of("teacher").vocab_size == run.prepared().vocab_size


def test_one_vocabulary_with_another_end_of_texts_is_another_tokenizer(
    tokenizer: Path, tmp_path: Path
) -> None:
    """As a base model's and its chat model's are: one `tokenizer.json`, two configs."""
    store = open_store(str(tmp_path / "alignment"))
    made = AutoTokenizer.from_pretrained(tokenizer)
    made.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    kept = {}
    for end in (made.eos_token, "<turn>"):
        made.eos_token = end
        made.save_pretrained(tmp_path / end)
        student = StudentConfig(
            model=ModelConfig(architecture="llama"), tokenizer=f"{tmp_path}/{end}"
        )
        kept[end] = keep_own_tokenizer(student, store, ROOM)
    assert len({each.info.sha256 for each in kept.values()}) == 1
    for end, found in kept.items():
        assert found.info.end_id == made.convert_tokens_to_ids(end)
        assert AutoTokenizer.from_pretrained(found.folder).eos_token == end


def test_an_export_is_checked_in_the_students_tokens_and_has_its_tokenizer(
    own: WholeRun, tokenizer: Path, tmp_path: Path
) -> None:
    facts = export(find_source(own.run.output.url, "student"), tmp_path / "to", [Format.HF], rows=2)
    expected = own.results["models"]["student"]["domains"]["validation"]
    assert facts["formats"]["hf"]["labels"] <= expected["tokens"]
    published = AutoTokenizer.from_pretrained(tmp_path / "to")
    assert published.get_vocab() == AutoTokenizer.from_pretrained(tokenizer).get_vocab()
