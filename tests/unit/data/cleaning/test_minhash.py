"""Near duplicates: found by their bands about as often as their similarity says."""

import random

import numpy as np
import pytest

from kdscale.config.cleaning import NearDuplicates
from kdscale.data.cleaning.cleaner import Status
from kdscale.data.cleaning.minhash import band_hashes, bands_and_rows, first_of_alike
from kdscale.data.rows.selection import DedupIndex, DocumentTable, filter_documents, step_counts
from tests.unit.data.tables import table

CONFIG = NearDuplicates(kind="near_duplicates", words=1)


def text_of(words: list[int]) -> str:
    return " ".join(f"w{word}" for word in words)


def pair(similarity: float, seed: int, size: int = 300) -> tuple[str, str]:
    """Two texts whose sets of words have about this Jaccard similarity."""
    shared = round(size * 2 * similarity / (1 + similarity))
    words = random.Random(seed).sample(range(10**6), 2 * size - shared)
    return text_of(words[:size]), text_of(words[size - shared :])


@pytest.mark.parametrize(
    ("similarity", "least", "most"), [(0.95, 38, 40), (0.5, 0, 4), (0.0, 0, 0)]
)
def test_texts_meet_around_the_similarity_asked_for(
    similarity: float, least: int, most: int
) -> None:
    meets = 0
    for seed in range(40):
        one, other = (band_hashes(text, CONFIG) for text in pair(similarity, seed))
        meets += bool((one == other).any())
    assert least <= meets <= most


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("permutations", [16, 128, 256])
def test_bands_meet_half_the_time_at_the_similarity(similarity: float, permutations: int) -> None:
    bands, rows = bands_and_rows(similarity, permutations)
    assert bands * rows <= permutations
    half = (1 - 0.5 ** (1 / bands)) ** (1 / rows)
    assert half == pytest.approx(similarity, abs=0.06 if permutations == 16 else 0.01)


def test_bands_depend_on_words_and_not_on_case_or_punctuation() -> None:
    config = NearDuplicates(kind="near_duplicates", words=3)
    one = band_hashes("The quick brown fox, jumps!", config)
    assert (one == band_hashes("the QUICK brown fox jumps", config)).all()
    assert (one == band_hashes("The quick brown fox, jumps!", config)).all()
    assert not (one == band_hashes("jumps fox brown quick the", config)).any()
    assert band_hashes("short", config).dtype == np.uint64
    assert band_hashes("", config).shape == one.shape


def components_by_hand(bands: np.ndarray) -> np.ndarray:
    """Return the first of each component, by walking from every document."""
    seen: set[int] = set()
    first = np.zeros(len(bands), bool)
    for start in range(len(bands)):
        if start in seen:
            continue
        first[start] = True
        waiting = [start]
        while waiting:
            at = waiting.pop()
            if at not in seen:
                seen.add(at)
                waiting += [n for n in range(len(bands)) if (bands[n] == bands[at]).any()]
    return first


@pytest.mark.parametrize("seed", range(8))
def test_of_documents_that_meet_directly_or_not_the_first_stays(seed: int) -> None:
    bands = np.random.default_rng(seed).integers(0, 25, (40, 3)).astype(np.uint64)
    assert first_of_alike(bands).tolist() == components_by_hand(bands).tolist()
    assert first_of_alike(bands[:0]).tolist() == []


def facts(texts: list[str], status: list[int] | None = None) -> DocumentTable:
    count = len(texts)
    return table(
        count,
        digests=np.array([[0, hash(text) & 0xFFFF] for text in texts], np.uint64),
        status=np.array(status or [Status.KEPT] * count, np.uint8),
        changed=np.arange(count, dtype=np.uint32),
        bands=np.stack([band_hashes(text, CONFIG) for text in texts]),
    )


def test_near_duplicates_and_near_leaks_are_dropped_and_counted() -> None:
    one, nearly = pair(0.97, seed=1)
    other, far = pair(0.1, seed=2)
    found = filter_documents(facts([one, other, nearly, one, far]))
    assert found.kept.tolist() == [True, True, False, False, True]
    assert found.counts["dropped_near_duplicate"] == 1
    assert found.counts["dropped_duplicate"] == 1
    training = facts([one])
    found = filter_documents(facts([nearly, other]), DedupIndex(training.digests, training.bands))
    assert found.kept.tolist() == [False, True]
    assert (found.counts["leaked"], found.counts["dropped_near_duplicate"]) == (1, 0)


def test_what_steps_did_is_counted_by_kind() -> None:
    made = facts(["a", "b", "c", "d"], [Status.KEPT, 16, 17, Status.KEPT])
    assert step_counts(made, ["language", "mask_pii", "near_duplicates"]) == [
        {"kind": "language", "dropped": 1, "changed": 2},
        {"kind": "mask_pii", "dropped": 1, "changed": 2},
    ]
