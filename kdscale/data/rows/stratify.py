"""Classes alike on both sides: which documents are held out, and whose labels are used.

Both are decided class by class from hashes of the documents' names, so that rare classes are not
lost to chance, and that the choice stays as it is when documents of other classes are added.
Arrays of bounds have an entry for documents without a class, then one for each class.
"""

import numpy as np

from kdscale.data.rows.classes import UNKNOWN_LABEL
from kdscale.data.rows.selection import LAST_PLACE, first_training_place
from kdscale.errors import KdscaleError
from kdscale.utils.splitmix import splitmix64


def first_training_places(
    places: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], validation_share: float
) -> np.ndarray:
    """[1 + classes] uint64: documents whose place is below their class's are held out: of each
    class the share with the lowest places, to the document, and none of unknown class.

    `places` [N] uint64 and `labels` [N] are those of the documents kept. Without classes the
    hash alone decides. KdscaleError for a class with fewer than two documents.
    """
    if not classes:
        return np.array([first_training_place(places, validation_share)], np.uint64)
    first = np.zeros(1 + len(classes), np.uint64)
    for number, name in enumerate(classes):
        own = np.sort(places[labels == number])
        if len(own) < 2:
            raise KdscaleError(
                f"The class {name!r} has {len(own)} documents: training and validation need one "
                "each.",
                "Give more documents of it, or leave it out with data.labels.classes.",
            )
        held_out = min(max(1, round(validation_share * len(own))), len(own) - 1)
        first[number + 1] = own[held_out]
    return first


def label_bounds(places: np.ndarray, labels: np.ndarray, classes: int, share: float) -> np.ndarray:
    """[1 + classes] uint64, for `used_labels`: of each class the `share` of documents, but at least
    one, whose label is used. `places` [N] uint64 and `labels` [N] are those of the documents."""
    bounds = np.full(1 + classes, LAST_PLACE)
    if share == 1:
        return bounds
    mixed = rehash(places)
    for number in range(classes):
        own = np.sort(mixed[labels == number])
        if len(own):
            bounds[number + 1] = own[max(1, round(share * len(own))) - 1]
    return bounds


def used_labels(places: np.ndarray, labels: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """[N] int32: the `labels` [N] of documents at `places` [N], -1 where one is not used."""
    used = rehash(places) <= bounds[labels + 1]
    return np.where(used, labels, UNKNOWN_LABEL).astype(np.int32)


def rehash(places: np.ndarray) -> np.ndarray:
    """[N] uint64: another hash, so that being held out says nothing of another choice.
    SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014)."""
    return splitmix64(places.astype(np.uint64))
