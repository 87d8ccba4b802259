"""Rows that bring their labels, against a slow description of what they must hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale.config.data import DataConfig, MaskingConfig
from kdscale.data.documents import TokenDocument
from kdscale.data.rows.examples import ClassifiedRows, MaskedRows, cut, mask_tokens
from kdscale.data.rows.pack import concatenate, sample_ids
from kdscale.data.tokenizer import TokenizerInfo
from kdscale.types import Rows

START, END, PAD, MASK, V = 1, 2, 0, 3, 5000
INFO = TokenizerInfo(V, "", START, END, PAD, MASK)


def document(length: int, label: int = 0, first: int = 10) -> TokenDocument:
    inner = np.arange(first, first + length, dtype=np.int32)
    return TokenDocument(
        np.concatenate([[START], inner, [END]]).astype(np.int32), 4 * length, label
    )


def config(**fields: object) -> DataConfig:
    return DataConfig.model_validate({"seq_len": 16, "labels": {}, **fields})


def build(rows: ClassifiedRows | MaskedRows, documents: list[TokenDocument], length: int) -> Rows:
    return concatenate(list(rows.build(documents)), length)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(8, 20), st.integers(1, 19))
def test_pieces_cover_a_document_in_order(inner: int, length: int, overlap: int) -> None:
    pieces = cut(document(inner).tokens, length, overlap)
    whole = list(range(10, 10 + inner))
    shared = min(overlap, length - 3)
    found: list[int] = []
    for number, piece in enumerate(pieces):
        assert piece[0] == START
        assert piece[-1] == END
        assert len(piece) <= length
        body = piece[1:-1].tolist()
        if number:
            assert body[:shared] == found[-shared:]
            body = body[shared:]
            assert body
        found += body
    assert found == whole
    assert all(len(piece) == length for piece in pieces[:-1])


@pytest.mark.parametrize("mode", ["truncate", "split"])
def test_a_document_is_a_row_or_several_with_its_class(mode: str) -> None:
    rows = ClassifiedRows(config(long_documents=mode, overlap=2), INFO)
    found = build(rows, [document(5, 3), document(40, 1, 100), document(14, -1, 200)], 16)
    count = 1 if mode == "truncate" else 4
    assert found.labels is not None
    assert found.labels[:, 0].tolist() == [3, *[1] * count, -1]
    assert found.loss_mask.sum(axis=1).tolist() == [1] * (count + 2)
    assert found.loss_mask[:, 0].all()
    assert (found.labels[:, 1:] == -1).all()
    assert found.input_ids[0].tolist() == [START, 10, 11, 12, 13, 14, END] + [PAD] * 9
    assert found.segment_ids[0].tolist() == [1] * 7 + [0] * 9
    assert found.byte_counts.tolist() == [20.0, *[160 / count] * count, 56.0]
    assert rows.counts.documents == 3
    assert rows.counts.truncated == (mode == "truncate")
    assert rows.counts.split == (mode == "split")


def test_a_long_document_is_a_row_of_chunks() -> None:
    made = config(seq_len=32, long_documents="hierarchical", chunks={"length": 8}, overlap=1)
    rows = ClassifiedRows(made, INFO)
    found = build(rows, [document(14, 2), document(40, 0, 100)], 32)
    # 6 tokens fit a chunk, 5 of them new: 14 tokens are 6, 5 and 3 new ones.
    assert found.segment_ids[0].tolist() == [1] * 8 + [2] * 8 + [3] * 6 + [0] * 10
    assert found.input_ids[0, 8:16].tolist() == [START, 15, 16, 17, 18, 19, 20, END]
    assert found.segment_ids[1].tolist() == np.repeat([1, 2, 3, 4], 8).tolist()
    assert rows.counts.truncated == 1
    # Four chunks hold 6 and three times 5.
    assert rows.counts.targets_truncated == 40 - 21


@settings(deadline=None, max_examples=200)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    overlap=st.integers(1, 15),
    kind=st.sampled_from(["masked", "truncate", "hierarchical", "split"]),
)
def test_tokens_that_are_cut_off_are_counted_once(
    sizes: list[int], overlap: int, kind: str
) -> None:
    chunks: dict[str, object] = {"chunks": {"length": 8}} if kind == "hierarchical" else {}
    mode = "truncate" if kind == "masked" else kind
    labels = None if kind == "masked" else {}
    length = 32 if kind == "hierarchical" else 16
    made = config(seq_len=length, long_documents=mode, overlap=overlap, labels=labels, **chunks)
    rows = MaskedRows(made, INFO) if kind == "masked" else ClassifiedRows(made, INFO)
    # No token of a document stands in another one.
    firsts = [100 * number + 10 for number in range(len(sizes))]
    documents = [document(size, 0, first) for size, first in zip(sizes, firsts, strict=True)]
    found = build(rows, documents, length)
    held = set(found.input_ids.ravel().tolist())
    if kind == "masked":
        assert found.labels is not None
        # The labels are what stood there before.
        held = set(np.where(found.loss_mask, found.labels, found.input_ids).ravel().tolist())
    lost = [set(each.tokens.tolist()) - held - {START, END} for each in documents]
    assert rows.counts.targets_truncated == sum(len(tokens) for tokens in lost)
    assert rows.counts.truncated == sum(bool(tokens) for tokens in lost)


def test_equal_texts_of_different_classes_are_different_rows() -> None:
    rows = ClassifiedRows(config(long_documents="truncate"), INFO)
    found = build(rows, [document(5, 0), document(5, 1), document(5, 0)], 16)
    assert len(found) == 2
    assert rows.counts.rows_duplicate == 1
    named = sample_ids(found.input_ids, found.segment_ids, found.loss_mask, found.labels)
    assert (named == found.sample_ids).all()


def test_masked_rows_keep_what_stood_there() -> None:
    rows = MaskedRows(config(labels=None, masking={"share": 0.3, "copies": 3}), INFO)
    found = build(rows, [document(14), document(40, first=100)], 16)
    assert found.labels is not None
    assert len(found) == 3 * (1 + 3)
    for ids, mask, labels, segments in zip(
        found.input_ids, found.loss_mask, found.labels, found.segment_ids, strict=True
    ):
        restored = np.where(mask, labels, ids)[segments == 1]
        assert restored[0] == START
        assert restored[-1] == END
        assert (np.diff(restored[1:-1]) == 1).all()
        assert mask.sum() == max(1, round(0.3 * (len(restored) - 2)))
        assert (labels[~mask] == -1).all()
    # Copies of a piece are masked elsewhere.
    assert len({tuple(mask) for mask in found.loss_mask[:3]}) > 1


def test_masks_are_the_same_each_time_and_in_bert_s_proportions() -> None:
    piece = document(4000).tokens
    ids, targets = mask_tokens(piece, 0, MaskingConfig(share=0.5), INFO)
    again, same = mask_tokens(piece, 0, MaskingConfig(share=0.5), INFO)
    assert (ids == again).all()
    assert (targets == same).all()
    assert len(targets) == 2000
    became = ids[targets]
    assert 0.77 < (became == MASK).mean() < 0.83
    assert 0.08 < (became == piece[targets]).mean() < 0.12
    assert (np.delete(ids, targets) == np.delete(piece, targets)).all()
