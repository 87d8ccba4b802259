"""Sequence lengths at every boundary, and rows cut to them."""

import numpy as np
import pytest
import torch

from kdscale.config.curriculum import LengthConfig, Schedule
from kdscale.curriculum.length import length_at, shorten

STEPS = 101


def lengths(multiple: int = 8, **fields: object) -> LengthConfig:
    positions = Schedule(**{"kind": "linear", "start": 16, "end": 116, **fields})
    return LengthConfig(positions=positions, multiple=multiple)


def test_lengths_are_multiples_rounded_down() -> None:
    # The schedule rises by one position a step.
    found = [length_at(lengths(), step, STEPS, 512) for step in range(STEPS)]
    assert [found[step] for step in (0, 7, 8, 15, 16, 95, 96, 100)] == [
        *(16, 16, 24, 24, 32, 104, 112, 112)
    ]
    assert found == [(16 + step) // 8 * 8 for step in range(STEPS)]


def test_lengths_stay_within_the_row() -> None:
    # 100 is no multiple of 8: whole rows are allowed all the same.
    found = [length_at(lengths(), step, STEPS, 100) for step in range(STEPS)]
    assert found[87:] == [96] + [100] * 13
    assert max(found) == 100
    assert length_at(lengths(), 0, STEPS, 12) == 12


def test_a_length_is_at_least_one_multiple() -> None:
    shrinking = lengths(start=40, end=8.5, multiple=8)
    assert length_at(shrinking, STEPS - 1, STEPS, 512) == 8
    inverse = LengthConfig(positions=Schedule(kind="inverse", start=64, end=8), multiple=8)
    assert length_at(inverse, 10**9, 10**9 + 1, 512) == 8


def test_without_a_schedule_rows_are_whole() -> None:
    assert length_at(None, 0, STEPS, 127) == 127


def made(library: str) -> tuple[object, object, object]:
    ids = np.arange(24).reshape(3, 8)
    mask = np.ones((3, 8), bool)
    mask[:, -1] = False
    mask[1, :3] = False
    payload = np.arange(48, dtype=np.uint8).reshape(3, 8, 2)
    if library == "numpy":
        return mask, ids, payload
    return torch.from_numpy(mask), torch.from_numpy(ids), torch.from_numpy(payload)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("length", [1, 2, 4, 7])
def test_rows_keep_their_first_positions_and_lose_the_last_target(
    library: str, length: int
) -> None:
    mask, ids, payload = made(library)
    short, short_ids, short_payload = shorten(length, mask, ids, payload)
    for row in range(3):
        assert short_ids[row].tolist() == ids[row].tolist()[:length]
        assert short_payload[row].tolist() == payload[row].tolist()[:length]
        expected = [bool(mask[row][i]) and i + 1 < length for i in range(length)]
        assert short[row].tolist() == expected
    again = made(library)
    assert mask.tolist() == again[0].tolist()


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_row_that_is_short_enough_stays_as_it_is(library: str) -> None:
    for length in (8, 9):
        for before, after in zip(made(library), shorten(length, *made(library)), strict=True):
            assert before.tolist() == after.tolist()
