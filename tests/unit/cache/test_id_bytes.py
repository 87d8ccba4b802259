"""Ids as whole bytes against Python's own integers."""

import pytest
import torch

from kdscale.cache.codecs.id_bytes import MAX_IDS, from_bytes, id_bytes, to_bytes


@pytest.mark.parametrize(
    ("vocab_size", "size"),
    [(1, 2), (2048, 2), (65_535, 2), (65_536, 2), (65_537, 3), (MAX_IDS - 1, 3), (MAX_IDS, 3)],
)
def test_every_id_of_a_vocabulary_fits_its_bytes(vocab_size: int, size: int) -> None:
    assert id_bytes(vocab_size) == size
    ids = torch.tensor([sorted({0, vocab_size // 3, vocab_size - 1})])
    assert torch.equal(from_bytes(to_bytes(ids, size), size), ids)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bytes_are_those_of_python_integers(size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(size)
    numbers = torch.randint(0, 256**size, (5, 7), generator=generator, dtype=dtype)
    numbers[0] = 256**size - 1
    held = to_bytes(numbers, size)
    assert held.dtype == torch.uint8
    expected = [b"".join(n.to_bytes(size, "little") for n in row) for row in numbers.tolist()]
    assert [bytes(row) for row in held.tolist()] == expected
    assert torch.equal(from_bytes(held, size), numbers.long())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_numbers_may_lie_anywhere(size: int) -> None:
    """As any leading dimensions, in any order of memory, from any byte on; also none."""
    numbers = torch.arange(2 * 3 * 5).reshape(5, 3, 2).permute(2, 1, 0)
    held = to_bytes(numbers, size)
    assert held.shape == (2, 3, 5 * size)
    assert torch.equal(from_bytes(held, size), numbers)
    behind = torch.nn.functional.pad(held, (1, 2))[..., 1:-2]
    assert torch.equal(from_bytes(behind, size), numbers)
    assert torch.equal(from_bytes(behind[1, 2], size), numbers[1, 2])
    assert from_bytes(to_bytes(numbers[:0], size), size).shape == (0, 3, 5)
