"""A student's sequences against an implementation that goes byte by byte."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.data.rows.pack import Layout, RowBuilder, concatenate
from kdscale.data.token_bytes import TokenBytes
from kdscale.data.tokenizer import encode
from kdscale.distill.alignment import AlignedRows, Aligner, Coverage, TokenizerPair
from kdscale.distill.alignment.coverage import KINDS as TEXT_KINDS
from kdscale.distill.alignment.coverage import kinds_of
from kdscale.errors import KdscaleError
from kdscale.types import Rows
from tests.small_tokenizers import KINDS, TEXTS, info_of, small_tokenizer, small_tokens


def rows_of(
    tokens: TokenBytes,
    texts: Sequence[str],
    seq_len: int = 24,
    overlap: int = 5,
    pack: bool = True,
    answers: random.Random | None = None,
) -> Rows:
    """Return the teacher's sequences as `prepare` makes them; with `answers`, some tokens count."""
    documents: list[Any] = []
    for (found,) in encode(tokens.json.decode(), tokens.info, list(texts)):
        targets: np.ndarray | None = None
        if answers is not None:
            edges = sorted(answers.choices(range(1, len(found.tokens) + 1), k=4))
            targets = np.zeros(len(found.tokens), bool)
            targets[edges[0] : edges[1]] = targets[edges[2] : edges[3]] = True
        documents.append((found.tokens, found.byte_count, targets))
    layout = Layout(seq_len, overlap, truncate=False, pack=pack, pad_id=tokens.info.pad_id)
    return concatenate(list(RowBuilder(layout).build(documents)), seq_len)


@dataclass
class Unit:
    """A byte of text, or a special token, of the teacher's sequence."""

    byte: int  # -1 of a special token
    number: int  # of the teacher's token in its segment
    begins: bool  # the token


@dataclass
class Naive:
    """A row of the student, token by token."""

    ids: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    labels: list[tuple[int, int]] = field(default_factory=list)  # (bytes, kind) of every target


@cache
def pair_of(teacher_kind: str, student_kind: str) -> TokenizerPair:
    return TokenizerPair.build(small_tokens(teacher_kind), small_tokens(student_kind, 450))


def naive_row(pair: TokenizerPair, rows: Rows, row: int) -> Naive:
    made, length = Naive(), rows.input_ids.shape[1]
    position = 0
    while position < length and rows.segment_ids[row, position]:
        stop = position
        while stop < length and rows.segment_ids[row, stop] == rows.segment_ids[row, position]:
            stop += 1
        ids = rows.input_ids[row, position:stop].tolist()
        counts = [False, *rows.loss_mask[row, position : stop - 1].tolist()]
        naive_segment(pair, made, ids, counts, position, int(rows.segment_ids[row, position]))
        position = stop
    return made


def adds(tokens: TokenBytes, number: int) -> bool:
    return tokens.prefix == "always" or (tokens.prefix == "first" and number == 1)


def naive_segment(
    pair: TokenizerPair, made: Naive, ids: list[int], counts: list[bool], start: int, segment: int
) -> None:
    teacher, student = pair.teacher, pair.student
    units: list[Unit] = []
    for number, token in enumerate(ids):
        if teacher.is_special[token]:
            units.append(Unit(-1, number, True))
            continue
        text = teacher.of_id(token)
        follows = number > 0 and bool(teacher.is_special[ids[number - 1]])
        if follows and adds(teacher, number) and text[:1] == b" ":
            # What stands behind the blank, up to the next edge.
            rest = text[1:]
            for behind, later in enumerate(ids[number + 1 :], number + 1):
                if teacher.is_special[later] or counts[behind] != counts[number]:
                    break
                rest += teacher.of_id(later)
            if teacher.always_adds or (rest and rest[:1] != b" "):
                text = text[1:]
        units += [Unit(byte, number, place == 0) for place, byte in enumerate(text)]
    pieces: list[list[Unit]] = []
    for unit in units:
        last = pieces[-1][-1] if pieces else None
        goes_on = (
            last is not None
            and unit.byte >= 0
            and last.byte >= 0
            and counts[unit.number] == counts[last.number]
        )
        if goes_on:
            pieces[-1].append(unit)
        else:
            pieces.append([unit])
    for number, piece in enumerate(pieces):
        is_target = counts[piece[0].number]
        if piece[0].byte < 0:
            token = ids[piece[0].number]
            first = number == 0 and token == pair.start[0]
            new = pair.start[1] if first else int(pair.counterparts[token])
            add_token(pair, made, new, piece, is_target, number == 0, ids, start, segment)
            continue
        text = bytes(unit.byte for unit in piece)
        follows = number > 0 and pieces[number - 1][0].byte < 0
        blank = follows and adds(student, pieces[number - 1][0].number + 1)
        blank = blank and (student.always_adds or text[:1] != b" ")
        text = b" " + text if blank else text
        left = list(piece)
        for place, new in enumerate(student.encode([text])[0].tolist()):
            size = len(student.of_id(new)) - int(blank and place == 0)
            own, left = left[:size], left[size:]
            is_first = number == 0 and place == 0
            add_token(pair, made, new, own, is_target, is_first, ids, start, segment)
        assert not left


def add_token(
    pair: TokenizerPair,
    made: Naive,
    new: int,
    own: list[Unit],
    is_target: bool,
    is_first: bool,
    ids: list[int],
    start: int,
    segment: int,
) -> None:
    made.ids.append(new)
    made.segments.append(segment)
    made.mask.append(False)
    made.source.append(-1)
    if is_first or not is_target:
        return
    made.mask[-2] = True
    made.labels.append((len([unit for unit in own if unit.byte >= 0]), new))
    if own and own[0].begins:
        theirs = pair.teacher_classes[ids[own[0].number]]
        if theirs == pair.student_classes[new]:
            made.source[-2] = start + own[0].number - 1


def check(pair: TokenizerPair, rows: Rows, seq_len: int) -> AlignedRows:
    found = Aligner(pair, seq_len).convert(rows)
    kinds = kinds_of(pair.student)
    coverage, cut_bytes = Coverage.none(), 0
    for row in range(len(rows)):
        made = naive_row(pair, rows, row)
        kept = min(len(made.ids), seq_len)
        expected = made.ids[:kept] + [pair.student.info.pad_id] * (seq_len - kept)
        assert found.rows.input_ids[row].tolist() == expected
        assert found.rows.segment_ids[row].tolist() == made.segments[:kept] + [0] * (seq_len - kept)
        # What a position at the end would predict is cut off.
        mask, source = made.mask[: kept - 1], made.source[: kept - 1]
        rest = seq_len - len(mask)
        assert found.rows.loss_mask[row].tolist() == mask + [False] * rest
        assert found.source[row].tolist() == source + [-1] * rest
        inside = sum(mask)
        every = sum(size for size, _ in made.labels)
        lost = sum(size for size, _ in made.labels[inside:])
        cut_bytes += lost
        share = 1 - lost / every if every else 1.0
        assert found.rows.byte_counts[row] == pytest.approx(rows.byte_counts[row] * share)
        covered = [number >= 0 for number, counts in zip(source, mask, strict=True) if counts]
        part = np.array([kinds[token] for _, token in made.labels[:inside]], np.int64)
        coverage += Coverage(
            np.bincount(part, minlength=len(TEXT_KINDS)),
            np.bincount(part[np.array(covered, bool)], minlength=len(TEXT_KINDS)),
            len(made.labels) - inside,
        )
    assert found.coverage.as_dict() == coverage.as_dict() | {"cut_bytes": cut_bytes}
    assert (found.rows.sample_ids == rows.sample_ids).all()
    assert found.rows.labels is None
    assert found.source.dtype == found.rows.input_ids.dtype == np.int32
    return found


@pytest.mark.parametrize("student_kind", KINDS)
@pytest.mark.parametrize("teacher_kind", KINDS)
def test_sequences_of_all_pairs_are_those_made_byte_by_byte(
    teacher_kind: str, student_kind: str
) -> None:
    pair = pair_of(teacher_kind, student_kind)
    found = check(pair, rows_of(pair.teacher, TEXTS), 96)
    assert found.coverage.share > 0.3
    assert found.coverage.cut_targets == 0


@pytest.mark.parametrize("student_kind", ["byte-level", "llama 2", "unigram"])
@pytest.mark.parametrize("teacher_kind", ["byte-level, blank in front", "gemma"])
@settings(deadline=None, max_examples=25)
@given(
    texts=st.lists(
        st.sampled_from(TEXTS) | st.text(min_size=1, max_size=20), min_size=1, max_size=5
    ),
    lengths=st.sampled_from([(6, 1), (8, 3), (20, 6), (64, 16)]),
    seq_len=st.sampled_from([5, 24, 200]),
    pack=st.booleans(),
    answers=st.none() | st.integers(0, 99),
)
def test_windows_masks_and_cuts_are_those_made_byte_by_byte(
    teacher_kind: str,
    student_kind: str,
    texts: list[str],
    lengths: tuple[int, int],
    seq_len: int,
    pack: bool,
    answers: int | None,
) -> None:
    pair = pair_of(teacher_kind, student_kind)
    some = None if answers is None else random.Random(answers)
    rows = rows_of(pair.teacher, texts, *lengths, pack, some)
    check(pair, rows, seq_len)


@pytest.mark.parametrize("student_kind", KINDS)
@pytest.mark.parametrize("teacher_kind", KINDS)
def test_every_byte_of_a_document_counts_once_over_its_windows(
    teacher_kind: str, student_kind: str
) -> None:
    pair = pair_of(teacher_kind, student_kind)
    teacher, student, aligner = pair.teacher, pair.student, Aligner(pair, 64)
    # A window that occurs twice is dropped, so that texts may not repeat themselves.
    # Nor "</s>", which Unigram reads as the end.
    for text in ("".join([*TEXTS[:7], *TEXTS[8:]]), TEXTS[5] + TEXTS[4], TEXTS[6] + TEXTS[3]):
        rows = rows_of(teacher, [text], seq_len=16, overlap=4, pack=False)
        ((encoded,),) = encode(teacher.json.decode(), teacher.info, [text])
        spelled = teacher.spell(encoded.tokens)
        if teacher.prefix != "never":
            spelled = teacher.without_blank(spelled)
        found = aligner.convert(rows)
        labels = np.roll(found.rows.input_ids, -1, axis=1)[found.rows.loss_mask]
        counted = student.spell(labels)
        assert counted == (spelled if student.prefix == "never" else student.with_blank(spelled))
        assert found.rows.byte_counts.sum() == pytest.approx(rows.byte_counts.sum())


@pytest.mark.parametrize("teacher_kind", ["byte-level", "gemma", "metaspace, first"])
def test_a_target_stands_behind_the_same_bytes_as_its_source(teacher_kind: str) -> None:
    teacher, student = small_tokens(teacher_kind), small_tokens("byte-level", 450)
    rows = rows_of(teacher, TEXTS * 2, 40, 8)
    found = Aligner(TokenizerPair.build(teacher, student), 128).convert(rows)
    for row, position in np.argwhere(found.source >= 0):
        source, segment = found.source[row, position], found.rows.segment_ids[row, position]
        assert rows.segment_ids[row, source] == segment
        assert rows.loss_mask[row, source]
        mine = found.rows.input_ids[row, : position + 1]
        theirs = rows.input_ids[row, : source + 1]
        behind = student.spell(mine[found.rows.segment_ids[row, : position + 1] == segment])
        inside = theirs[rows.segment_ids[row, : source + 1] == segment]
        same = teacher.spell(inside)
        adds_blank = teacher.prefix != "never" and inside[0] == teacher.info.start_id
        assert behind in ((same, same.removeprefix(b" ")) if adds_blank else (same,))


@pytest.mark.parametrize("kind", KINDS)
def test_the_teachers_own_tokenizer_gives_its_sequences_back(kind: str) -> None:
    tokens = small_tokens(kind)
    # Without windows: one token may be split at the edge of an overlap.
    rows = rows_of(tokens, [text for text in TEXTS if "</s>" not in text and text != " "], 96)
    found = Aligner(TokenizerPair.build(tokens, tokens), 96).convert(rows)
    for name in ("input_ids", "segment_ids", "loss_mask", "byte_counts", "sample_ids"):
        np.testing.assert_array_equal(getattr(found.rows, name), getattr(rows, name))
    covered = found.source >= 0
    places = np.broadcast_to(np.arange(96), covered.shape)
    np.testing.assert_array_equal(found.source[covered], places[covered])
    # Without a target: a first token that is no more than the blank that was added.
    assert (rows.loss_mask & ~covered).sum() <= len(TEXTS) * (tokens.prefix != "never")


def test_a_start_that_is_also_the_end_is_told_apart_by_its_place() -> None:
    tokenizer = small_tokenizer("byte-level")
    info = replace(info_of(tokenizer), start_id=1, end_id=1)
    teacher = TokenBytes.of(tokenizer.to_str().encode(), info)
    pair = TokenizerPair.build(teacher, small_tokens("gemma", 450))
    found = check(pair, rows_of(teacher, ["one", "two"]), 40)
    start, end = pair.student.info.start_id, pair.student.info.end_id
    special = [token for token in found.rows.input_ids[0].tolist() if token in (start, end)]
    assert special[:4] == [start, end, start, end]


def test_a_special_token_without_a_counterpart_is_refused_by_name() -> None:
    tokenizer = small_tokenizer("byte-level")
    spec = tokenizer.to_str().replace('"<s>"', '"<turn>"')
    teacher = TokenBytes.of(spec.encode(), replace(info_of(tokenizer), start_id=1))
    pair = TokenizerPair.build(teacher, small_tokens("gemma", 450))
    rows = rows_of(teacher, ["one"])
    rows.input_ids[0, 2] = 0
    with pytest.raises(KdscaleError, match=r"special token 0 \('<turn>'\)"):
        Aligner(pair, 40).convert(rows)


def test_sequences_that_bring_their_labels_are_refused() -> None:
    teacher = small_tokens("byte-level")
    rows = rows_of(teacher, ["one"])
    pair = TokenizerPair.build(teacher, small_tokens("gemma", 450))
    with pytest.raises(ValueError, match="labels are the next tokens"):
        Aligner(pair, 40).convert(replace(rows, labels=rows.input_ids))


def test_nothing_comes_of_nothing() -> None:
    teacher = small_tokens("byte-level")
    rows = rows_of(teacher, TEXTS).take(np.arange(0))
    found = Aligner(TokenizerPair.build(teacher, small_tokens("gemma", 450)), 40).convert(rows)
    assert found.rows.input_ids.shape == found.source.shape == (0, 40)
    assert np.isnan(found.coverage.share)


def test_threads_get_the_same() -> None:
    teacher = small_tokens("byte-level")
    aligner = Aligner(TokenizerPair.build(teacher, small_tokens("unigram", 450)), 96)
    rows = rows_of(teacher, TEXTS * 3)
    alone = aligner.convert(rows)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(aligner.convert, [rows] * 8):
            np.testing.assert_array_equal(found.rows.input_ids, alone.rows.input_ids)
            np.testing.assert_array_equal(found.source, alone.source)


def test_coverage_is_counted_by_kind_of_text() -> None:
    teacher, student = small_tokens("byte-level"), small_tokens("gemma", 450)
    rows = rows_of(teacher, TEXTS, 96)
    coverage = Aligner(TokenizerPair.build(teacher, student), 200).convert(rows).coverage
    assert list(coverage.by_kind()) == list(TEXT_KINDS)
    assert coverage.by_kind()["special tokens"] == 1.0
    assert 0.5 < coverage.by_kind()["words"] <= 1
    assert Coverage.from_dict(coverage.as_dict()).as_dict() == coverage.as_dict()
    assert (coverage + coverage).share == coverage.share
    assert (coverage + Coverage.none()).as_dict() == coverage.as_dict()
