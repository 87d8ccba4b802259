"""Row building against an independent, slow description of what rows must hold."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.data.rows.best_fit import OPEN_ROWS
from kdscale.data.rows.pack import Layout, RowBuilder, RowCounts, concatenate, sample_ids
from kdscale.types import Rows

PAD = -7
# (tokens, UTF-8 bytes), and which tokens are targets where it is not all but the first.
Document = tuple[Any, ...]


def build(documents: list[Document], layout: Layout) -> tuple[Rows, RowCounts]:
    builder = RowBuilder(layout)
    parts = list(builder.build(documents))
    return concatenate(parts, layout.seq_len), builder.counts


def numbered(lengths: list[int], byte_counts: list[int]) -> list[Document]:
    """Documents whose tokens are all different, so that a token tells where it comes from."""
    documents, first = [], 0
    for length, byte_count in zip(lengths, byte_counts, strict=True):
        documents.append((np.arange(first, first + length, dtype=np.int32), byte_count))
        first += length
    return documents


def expected_segments(document: Document, layout: Layout) -> list[tuple[tuple, tuple]]:
    """(tokens, which of them are targets) of a document's windows, by the definition."""
    tokens = document[0].tolist()
    wanted = document[2].tolist() if len(document) == 3 else [True] * len(tokens)
    if len(tokens) > layout.seq_len and layout.drop:
        return []
    if layout.truncate:
        tokens = tokens[: layout.seq_len]
    segments, done = [], 1
    for start in range(0, len(tokens), layout.seq_len - layout.overlap):
        window = tokens[start : start + layout.seq_len]
        if start + len(window) <= done:
            break
        targets = tuple(start + at >= done and wanted[start + at] for at in range(len(window)))
        if any(targets):
            segments.append((tuple(window), targets))
        done = start + len(window)
    return segments


def found_segments(rows: Rows) -> list[list[tuple[tuple, tuple]]]:
    """Return the same of each row, read off its segment ids and loss mask."""
    found = []
    for ids, segments, mask in zip(rows.input_ids, rows.segment_ids, rows.loss_mask, strict=True):
        count = segments.max()
        used = segments > 0
        # Segments are numbered from 1, in order, without gaps, and padding is at the end only.
        assert np.array_equal(segments[used], np.sort(segments[used]))
        assert set(segments[used]) == set(range(1, count + 1))
        assert not used[used.sum() :].any()
        assert (ids[~used] == PAD).all()
        assert not mask[~used].any()
        row = []
        for number in range(1, count + 1):
            at = np.flatnonzero(segments == number)
            # Token j of a segment is a target when the position before it is in the mask.
            targets = (False, *mask[at[:-1]].tolist())
            assert not mask[at[-1]], "a segment's last position has no next token in it"
            row.append((tuple(ids[at].tolist()), targets))
        found.append(row)
    return found


LAYOUTS = st.integers(8, 24).flatmap(
    lambda length: st.builds(
        Layout,
        seq_len=st.just(length),
        overlap=st.integers(1, length - 1),
        truncate=st.booleans(),
        pack=st.booleans(),
        pad_id=st.just(PAD),
    )
)
# (length, bytes, share of the tokens that are targets, seed) of documents with targets of their own
ANSWERS = st.lists(
    st.tuples(
        *(st.integers(2, 120), st.integers(1, 500)),
        *(st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.integers(0, 99)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(LAYOUTS, st.lists(st.tuples(st.integers(2, 120), st.integers(1, 500)), max_size=40))
def test_rows_hold_every_window_once(layout: Layout, sizes: list[tuple[int, int]]) -> None:
    documents = numbered([size for size, _ in sizes], [size for _, size in sizes])
    rows, counts = build(documents, layout)
    found = found_segments(rows)
    expected = Counter(s for document in documents for s in expected_segments(document, layout))
    assert Counter(segment for row in found for segment in row) == expected
    if not layout.pack:
        assert all(len(row) == 1 for row in found)
    elif len(found) <= OPEN_ROWS:
        # Best fit never opens a row for what an open one has room for.
        used = (rows.segment_ids > 0).sum(1)
        assert (2 * used <= layout.seq_len).sum() <= 1
    assert counts.documents == len(documents)
    assert counts.tokens == sum(len(tokens) for tokens, _ in documents)
    assert counts.rows == len(rows)
    assert counts.rows_duplicate == counts.targets_duplicate == 0
    assert counts.padding == (rows.segment_ids == 0).sum()
    assert counts.packed == sum(len(row) for row in found if len(row) > 1)


def with_targets(sizes: list[tuple[int, int, float, int]]) -> list[Document]:
    """Numbered documents of which a random share of the tokens are targets."""
    plain = numbered([size[0] for size in sizes], [size[1] for size in sizes])
    documents = []
    for (tokens, byte_count), (_, _, share, seed) in zip(plain, sizes, strict=True):
        is_target = np.random.default_rng(seed).random(len(tokens)) < share
        is_target[0] = False
        documents.append((tokens, byte_count, is_target))
    return documents


@settings(max_examples=200, deadline=None)
@given(LAYOUTS, st.booleans(), ANSWERS)
def test_rows_hold_the_targets_that_documents_bring(
    layout: Layout, drop: bool, sizes: list[tuple[int, int, float, int]]
) -> None:
    layout, documents = replace(layout, drop=drop), with_targets(sizes)
    rows, counts = build(documents, layout)
    expected = Counter(s for document in documents for s in expected_segments(document, layout))
    assert Counter(segment for row in found_segments(rows) for segment in row) == expected
    spoken = [document for document in documents if document[2].any()]
    assert counts.without_target == len(documents) - len(spoken)
    long = [document for document in spoken if len(document[0]) > layout.seq_len]
    assert counts.long == (len(long) if drop else 0)
    assert counts.targets == rows.loss_mask.sum()
    assert rows.loss_mask.any(axis=1).all(), "nobody learns from a row without a target"
    if not drop and not layout.truncate:
        assert rows.byte_counts.sum() == pytest.approx(sum(size for _, size, _ in spoken))


def test_conversations_that_cannot_be_rendered_are_counted() -> None:
    nothing = np.zeros(0, np.int32)
    rows, counts = build([(nothing, 9, np.zeros(0, bool))], Layout(8, 1, False, True, PAD))
    assert len(rows) == 0
    assert (counts.documents, counts.unrendered, counts.without_target) == (1, 1, 0)


@settings(max_examples=200, deadline=None)
@given(LAYOUTS, st.lists(st.tuples(st.integers(2, 120), st.integers(1, 500)), max_size=40))
def test_targets_and_bytes_add_up(layout: Layout, sizes: list[tuple[int, int]]) -> None:
    documents = numbered([size for size, _ in sizes], [size for _, size in sizes])
    rows, counts = build(documents, layout)
    position = np.nonzero(rows.loss_mask)
    targets = rows.input_ids[position[0], position[1] + 1].tolist()
    assert len(set(targets)) == len(targets), "no token is a target twice"
    whole = [tokens.tolist()[1:] for tokens, _ in documents]
    if layout.truncate:
        whole = [tokens[: layout.seq_len - 1] for tokens in whole]
        longer = [tokens for tokens, _ in documents if len(tokens) > layout.seq_len]
        assert counts.truncated == len(longer)
        assert counts.targets_truncated == sum(len(t) - layout.seq_len for t in longer)
        assert counts.split == 0
    assert sorted(targets) == [token for tokens in whole for token in tokens]
    assert counts.targets == len(targets)
    expected = sum(
        byte_count * len(kept) / (len(tokens) - 1)
        for (tokens, byte_count), kept in zip(documents, whole, strict=True)
    )
    assert rows.byte_counts.sum() == pytest.approx(expected, rel=1e-12)
    assert counts.bytes == pytest.approx(expected, rel=1e-12)
    if not layout.truncate:
        assert expected == pytest.approx(sum(byte_count for _, byte_count in documents))


def test_a_split_document_by_hand() -> None:
    layout = Layout(seq_len=8, overlap=3, truncate=False, pack=True, pad_id=PAD)
    rows, counts = build(numbered([15, 3], [28, 4]), layout)
    assert rows.input_ids.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [5, 6, 7, 8, 9, 10, 11, 12],
        [10, 11, 12, 13, 14, 15, 16, 17],
    ]
    assert rows.segment_ids.tolist() == [[1] * 8, [1] * 8, [1] * 5 + [2] * 3]
    assert rows.loss_mask.astype(int).tolist() == [
        [1, 1, 1, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 0, 1, 1, 0],
    ]
    # 28 bytes over 14 targets, 4 bytes over 2.
    assert rows.byte_counts.tolist() == [14.0, 10.0, 8.0]
    assert (counts.split, counts.packed, counts.rows, counts.padding) == (1, 2, 3, 0)


def test_sample_ids_are_a_hash_of_the_content() -> None:
    rows, _ = build(numbered([15, 3], [28, 4]), Layout(8, 3, False, True, PAD))
    for at in range(len(rows)):
        content = (
            rows.input_ids[at].astype("<i4").tobytes()
            + rows.segment_ids[at].astype("<i4").tobytes()
            + rows.loss_mask[at].astype(np.uint8).tobytes()
        )
        assert rows.sample_ids[at].tobytes() == xxhash.xxh3_128_digest(content)
    other = rows.loss_mask.copy()
    other[1, 0] = True
    changed = sample_ids(rows.input_ids, rows.segment_ids, other)
    assert (changed != rows.sample_ids).any(1).tolist() == [False, True, False]


def test_repeated_rows_are_dropped_and_counted() -> None:
    tokens = np.arange(20, dtype=np.int32)
    layout = Layout(seq_len=8, overlap=1, truncate=False, pack=False, pad_id=PAD)
    once, _ = build([(tokens, 19)], layout)
    rows, counts = build([(tokens, 19), (tokens + 100, 19), (tokens, 19)], layout)
    assert len(once) == 3
    assert len(rows) == 6
    assert np.array_equal(rows.sample_ids[:3], once.sample_ids)
    assert (counts.rows_duplicate, counts.targets_duplicate) == (3, 19)
    assert (counts.documents, counts.targets, counts.bytes) == (3, 38, 38.0)


def test_more_pieces_than_open_rows_keep_the_memory_bounded() -> None:
    # Pieces of 5 in rows of 8: no two fit, so rows close only because too many are open.
    layout = Layout(seq_len=8, overlap=1, truncate=False, pack=True, pad_id=PAD)
    builder = RowBuilder(layout)
    rows = concatenate(list(builder.build(numbered([5] * 3000, [4] * 3000))), 8)
    assert len(rows) == 3000
    assert rows.input_ids[:, 0].tolist() == list(range(0, 15000, 5)), "in the documents' order"
    assert builder.counts.packed == 0
