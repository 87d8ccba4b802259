"""Uniforms: uniform, uncorrelated, and a function of their coordinates alone."""

import torch

from kdscale.cache.codecs import uniforms


def sample_ids(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, 16), generator=generator, dtype=torch.uint8)


def reference(seed: int, sample_id: bytes, position: int, stream: int) -> float:
    """Return the same hash in Python integers."""
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(state: int) -> int:
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
        return state ^ (state >> 31)

    low, high = (int.from_bytes(sample_id[at : at + 8], "little") for at in (0, 8))
    state = mix(low ^ ((seed + 1) * golden & mask))
    state = mix(state ^ high)
    state = mix((state + position * golden) & mask)
    return (mix((state + (stream + 1) * golden) & mask) >> 11) / 2**53


def test_values_are_the_hash_of_their_coordinates() -> None:
    ids = sample_ids(3)
    drawn = uniforms(7, ids, 4)
    expected = [
        [[reference(7, bytes(row.tolist()), at, stream) for stream in range(2)] for at in range(4)]
        for row in ids
    ]
    assert drawn.tolist() == expected


def test_values_do_not_depend_on_batch_or_length() -> None:
    ids = sample_ids(9)
    whole = uniforms(3, ids, 20)
    assert torch.equal(uniforms(3, ids[4:5], 20)[0], whole[4])
    assert torch.equal(uniforms(3, ids.flip(0), 20).flip(0), whole)
    assert torch.equal(uniforms(3, ids, 6), whole[:, :6])


def test_more_streams_leave_the_first_as_they_are() -> None:
    """A codec with more draws sees the numbers of one with fewer, and one without draws none."""
    ids = sample_ids(3)
    many = uniforms(3, ids, 4, 50)
    assert many.shape == (3, 4, 50)
    assert torch.equal(many[..., :2], uniforms(3, ids, 4))
    assert len(many.unique()) == many.numel()
    assert uniforms(3, ids, 4, 0).shape == (3, 4, 0)


def test_other_seed_or_sample_gives_other_values() -> None:
    ids = sample_ids(2)
    assert not (uniforms(0, ids, 50) == uniforms(1, ids, 50)).any()
    assert not (uniforms(0, ids, 50)[0] == uniforms(0, ids, 50)[1]).any()


def test_values_are_uniform_and_uncorrelated() -> None:
    drawn = uniforms(0, sample_ids(500), 400)
    assert drawn.dtype == torch.float64
    assert drawn.min() >= 0
    assert drawn.max() < 1
    flat = drawn.flatten().sort().values
    steps = torch.arange(len(flat), dtype=torch.float64) / len(flat)
    # Kolmogorov-Smirnov at n = 400,000: 1.95 / sqrt(n) is the 0.1 % point.
    assert (flat - steps).abs().max() < 1.95 / len(flat) ** 0.5
    centred = (drawn - 0.5) * 12**0.5
    for other in (
        centred.flip(-1),  # streams
        centred.roll(1, dims=1),  # positions
        centred.roll(1, dims=0),  # samples
    ):
        assert (centred * other).mean().abs() < 5 / drawn.numel() ** 0.5


def test_neighbouring_sample_ids_are_as_different_as_any() -> None:
    ids = torch.zeros(256, 16, dtype=torch.uint8)
    ids[:, 0] = torch.arange(256, dtype=torch.uint8)
    drawn = (uniforms(0, ids, 200) - 0.5) * 12**0.5
    assert (drawn[:-1] * drawn[1:]).mean().abs() < 5 / drawn[1:].numel() ** 0.5
