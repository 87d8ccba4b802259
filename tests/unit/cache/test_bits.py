"""Packing against a reference in Python's own integers."""

import pytest
import torch

from kdscale.cache.codecs import bits


def packed_by_hand(row: list[int], width: int) -> list[int]:
    joined = sum(value << (index * width) for index, value in enumerate(row))
    return list(joined.to_bytes(bits.packed_bytes(len(row), width), "little"))


@pytest.mark.parametrize("width", range(1, bits.MAX_WIDTH + 1))
@pytest.mark.parametrize("columns", [1, 7, 12])
def test_every_width_packs_like_python_integers(width: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(width)
    values = torch.randint(0, 1 << width, (5, columns), generator=generator)
    values[0] = (1 << width) - 1
    packed = bits.pack(values, width)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [packed_by_hand(row, width) for row in values.tolist()]
    assert torch.equal(bits.unpack(packed, columns, width), values)


@pytest.mark.parametrize("vocab_size", [(1 << 17) + 1000, (1 << 18) + 3])
def test_ids_past_2_to_the_17_and_18_survive(vocab_size: int) -> None:
    ids = torch.tensor([[0, (1 << 17) - 1, 1 << 17, vocab_size - 1]])
    width = bits.width_for(vocab_size)
    assert torch.equal(bits.unpack(bits.pack(ids, width), 4, width), ids)


@pytest.mark.parametrize(
    ("count", "width"),
    [(1, 1), (2, 1), (3, 2), (2048, 11), (2049, 12), (1 << 17, 17), (131073, 18)],
)
def test_width_is_the_least_that_holds_every_id(count: int, width: int) -> None:
    assert bits.width_for(count) == width


def test_leading_dimensions_are_kept() -> None:
    values = torch.arange(2 * 3 * 5).reshape(2, 3, 5)
    packed = bits.pack(values, 9)
    assert packed.shape == (2, 3, bits.packed_bytes(5, 9))
    assert torch.equal(bits.unpack(packed, 5, 9), values)
