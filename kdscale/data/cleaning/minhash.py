"""Near duplicates: documents that share most of their word sequences.

MinHash (Broder, "On the resemblance and containment of documents", 1997) in bands: a document's
signature is cut into bands of a few hashes, and two documents that agree in all hashes of one band
are taken for repetitions, as in datatrove and the pipelines of large corpora. Two documents of
similarity s match with probability 1 - (1 - s^rows)^bands, which rises steeply around the
similarity asked for. A task computes the bands of its documents; the driver sees 8 bytes a band.
"""

import re
from functools import cache

import numpy as np
import xxhash

from kdscale.config.cleaning import NearDuplicates

_WORD = re.compile(r"\w+")


@cache
def bands_and_rows(similarity: float, permutations: int) -> tuple[int, int]:
    """Return (bands, hashes of a band) for a similarity.

    Of those that fit, the ones with which documents of `similarity` match half the time, to a
    hundredth; of these the steepest, which has the longest bands.
    """

    def distance(bands: int, rows: int) -> float:
        half = (1 - 0.5 ** (1 / bands)) ** (1 / rows)
        return round(abs(half - similarity), 2)

    fitting = [
        (bands, rows)
        for rows in range(1, permutations + 1)
        for bands in range(1, permutations // rows + 1)
    ]
    return min(fitting, key=lambda shape: (distance(*shape), -shape[1]))


def band_hashes(text: str, config: NearDuplicates) -> np.ndarray:
    """Return [bands] uint64 of a text. A text shorter than a sequence is one sequence."""
    from datasketch import MinHash

    words = [word.casefold() for word in _WORD.findall(text)]
    count = max(1, len(words) - config.words + 1)
    sequences = {" ".join(words[at : at + config.words]).encode() for at in range(count)}
    signature = MinHash(config.permutations, hashfunc=xxhash.xxh3_64_intdigest, scheme="affine64")
    signature.update_batch(sorted(sequences))
    bands, rows = bands_and_rows(config.similarity, config.permutations)
    parts = signature.hashvalues[: bands * rows].astype("<u8").reshape(bands, rows)
    return np.array([xxhash.xxh3_64_intdigest(part.tobytes()) for part in parts], np.uint64)


def first_of_alike(bands: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Return [A] bool: True at the first of each set of documents that share a band.

    Sharing is transitive. `bands` is [N, bands] uint64; `among` are the [A] ascending numbers of
    the documents that count, all by default. A band at a time takes some 50 bytes a document.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(bands) if among is None else len(among)
    if not count:
        return np.zeros(0, bool)
    members, firsts = [], []
    for whole in bands.T:
        column = whole if among is None else whole[among]
        _, first, group = np.unique(column, return_index=True, return_inverse=True)
        alike = first[group]
        other = np.flatnonzero(alike != np.arange(count))
        members.append(other)
        firsts.append(alike[other])
    edges = np.concatenate(members), np.concatenate(firsts)
    links = coo_matrix((np.ones(len(edges[0]), bool), edges), shape=(count, count))
    _, component = connected_components(links, directed=False)
    found = np.zeros(count, bool)
    found[np.unique(component, return_index=True)[1]] = True
    return found
