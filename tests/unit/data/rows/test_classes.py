"""Classes from labels as people write them, and splits that keep every class on both sides."""

import numpy as np
import pytest

from kdscale.config.data import LabelsConfig
from kdscale.data.rows.classes import Classes, find_classes
from kdscale.data.rows.selection import first_training_ranks, label_bounds, used_labels
from kdscale.errors import KdscaleError


def test_spellings_of_a_class_are_one() -> None:
    config = LabelsConfig(aliases={"Football": "sport"})
    classes = find_classes(config, [" Sport", "tech", "TECH ", "football", "sport", None, "  "])
    assert classes.names == ("Sport", "TECH")
    assert [classes.number(label) for label in ("sport", "FOOTBALL", "tech", None, " ")] == [
        *(0, 0, 1, -1, -1)
    ]


def test_the_order_of_documents_does_not_matter() -> None:
    labels = ["b", "a", "B", "c", "A"]
    forward, backward = (find_classes(LabelsConfig(), each) for each in (labels, labels[::-1]))
    assert forward.names == backward.names == ("A", "B", "c")


def test_the_config_may_name_the_classes_and_their_order() -> None:
    classes = find_classes(LabelsConfig(classes=("tech", "sport")), ["sport"])
    assert [classes.number(name) for name in ("sport", "tech")] == [1, 0]
    with pytest.raises(KdscaleError, match=r"(?s)'news', which is no class.*'tech', 'sport'"):
        classes.number("news")


def test_what_cannot_be_classes_is_refused() -> None:
    with pytest.raises(KdscaleError, match="name 1 classes in the field 'label': 'A'"):
        find_classes(LabelsConfig(), ["a", "A", None])
    with pytest.raises(KdscaleError, match="'x' is to mean 'y', which is no class"):
        Classes(["a", "b"], {"x": "y"})
    with pytest.raises(ValueError, match="two names or more"):
        LabelsConfig(classes=("a", " A"))


def ranks(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4])
def test_of_each_class_the_same_share_is_held_out(share: float) -> None:
    labels = np.repeat([0, 1, 2, -1], [200, 20, 3, 50]).astype(np.int32)
    at = ranks(len(labels))
    first = first_training_ranks(at, labels, ("a", "b", "c"), share)
    held_out = at < first[labels + 1]
    for number, count in ((0, 200), (1, 20), (2, 3)):
        assert held_out[labels == number].sum() == max(1, round(share * count))
    assert not held_out[labels == -1].any()
    # The lowest places are, so that a document added elsewhere changes nothing.
    own = labels == 0
    assert at[own & held_out].max() < at[own & ~held_out].min()


def test_every_class_keeps_one_document_on_both_sides() -> None:
    labels = np.array([0, 0, 1, 1], np.int32)
    at = ranks(4)
    first = first_training_ranks(at, labels, ("a", "b"), 0.49)
    held_out = at < first[labels + 1]
    assert held_out.reshape(2, 2).sum(axis=1).tolist() == [1, 1]
    with pytest.raises(KdscaleError, match="'b' has 1 documents"):
        first_training_ranks(at[:3], labels[:3], ("a", "b"), 0.1)


def test_a_share_of_the_labels_is_used_class_by_class() -> None:
    labels = np.repeat([0, 1, -1], [300, 30, 10]).astype(np.int32)
    at = ranks(len(labels))
    used = used_labels(at, labels, label_bounds(at, labels, 2, 0.1))
    assert [(used == number).sum() for number in (0, 1)] == [30, 3]
    assert ((used == labels) | (used == -1)).all()
    # Being held out says nothing of it: the choice is by another hash.
    low = at < np.uint64(2**63)
    assert 5 < (used[low & (labels == 0)] == 0).sum() < 25
    everything = used_labels(at, labels, label_bounds(at, labels, 2, 1.0))
    assert (everything == labels).all()


def test_the_choice_of_labels_stands_when_documents_are_added() -> None:
    labels = np.zeros(400, np.int32)
    at = ranks(400)
    few = used_labels(at[:200], labels[:200], label_bounds(at[:200], labels[:200], 1, 0.2))
    many = used_labels(at, labels, label_bounds(at, labels, 1, 0.2))
    # Of those used before, all that the larger corpus's own threshold still covers.
    assert (few == 0).sum() == 40
    assert (many == 0).sum() == 80
    kept = ((few == 0) & (many[:200] == 0)).sum()
    assert kept == min(40, (many[:200] == 0).sum())
