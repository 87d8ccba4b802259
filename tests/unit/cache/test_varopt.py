"""The theory of VarOpt, held against many draws of the codec."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdscale.cache.codecs.id_bytes import from_bytes, id_bytes
from kdscale.cache.codecs.varopt import Varopt

LARGE = (1 << 17) + 1000


def zipf(vocab: int, power: float = 1.0) -> Tensor:
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(0))
    return -power * torch.arange(1, vocab + 1, dtype=torch.float32).log()[order]


def normal(vocab: int, scale: float) -> Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * scale


def only(vocab: int, masses: dict[int, float]) -> Tensor:
    logits = torch.full((vocab,), -torch.inf)
    for index, mass in masses.items():
        logits[index] = torch.tensor(mass).log()
    return logits


SHAPES = {
    "peaked": normal(1000, 6.0),
    "flat": torch.zeros(777),
    "zipf": zipf(3000),
    "steep zipf": zipf(3000, 2.0),
    "large zipf": zipf(LARGE),
    "one hot": only(300, {299: 1.0}),
    "nearly one hot": only(300, {5: 1 - 1e-4, 6: 5e-5, 290: 5e-5}),
    "two ids": only(64, {0: 0.3, 63: 0.7}),
    "more above tau than the head holds": only(200, dict.fromkeys(range(8), 0.124) | {99: 0.008}),
    "exact boundary": only(100, dict.fromkeys(range(12), 1 / 12)),
    "mass in late blocks only": only(300, {200: 0.5, 210: 0.2, 220: 0.2, 299: 0.1}),
    "as many ids as slots": normal(12, 1.0),
}
CODECS: dict[str, Callable[[int], Varopt]] = {
    "default": lambda vocab: Varopt(12, 4, 8, vocab),
    "16 bits": lambda vocab: Varopt(12, 4, 16, vocab),
    "all but one in the head": lambda vocab: Varopt(12, 11, 8, vocab),
    "k 2": lambda vocab: Varopt(2, 1, 8, vocab),
}


def draw(codec: Varopt, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw ids and probabilities [N, K] of one distribution, once for each of [N, 2] uniforms."""
    targets = codec.decode(codec.encode(logits.expand(len(uniforms), -1), uniforms).payload)
    return targets.ids, targets.probs


def mean_target(ids: Tensor, probs: Tensor, vocab: int) -> Tensor:
    total = torch.zeros(vocab, dtype=torch.float64)
    return total.index_add_(0, ids.flatten(), probs.flatten().double()) / len(ids)


def grid(rounding: int, sampling: int) -> Tensor:
    first = (torch.arange(rounding, dtype=torch.float64) + 0.5) / rounding
    second = (torch.arange(sampling, dtype=torch.float64) + 0.5) / sampling
    return torch.cartesian_prod(first, second)


def random_uniforms(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.rand(count, 2, generator=generator, dtype=torch.float64)


def threshold(p: Tensor, k: int, head: int) -> tuple[int, float]:
    """Return h and tau by the definition, from the sorted distribution."""
    ordered = p.sort(descending=True).values
    for size in range(head + 1):
        tau = (1 - ordered[:size].sum().item()) / (k - size)
        if size == head or ordered[size].item() <= tau * (1 + 1e-6):
            return size, tau
    raise AssertionError


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
@pytest.mark.parametrize("logits", SHAPES.values(), ids=SHAPES.keys())
def test_mean_over_a_grid_of_uniforms_is_p(codec: Callable[[int], Varopt], logits: Tensor) -> None:
    """On a grid, each id is hit within one point of its due, and so is each rounding."""
    subject = codec(len(logits))
    rounding, sampling = 8, 64
    p = logits.double().softmax(-1)
    ids, probs = draw(subject, logits, grid(rounding, sampling))
    _, tau = threshold(p, subject.k, subject.head)
    steps = 2**subject.head_bits - 2
    bound = tau / sampling + 1 / (rounding * steps) + 1e-6
    assert (mean_target(ids, probs, len(p)) - p).abs().max() <= bound


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
@pytest.mark.parametrize("logits", SHAPES.values(), ids=SHAPES.keys())
def test_every_target_sums_to_one_over_valid_ids(
    codec: Callable[[int], Varopt], logits: Tensor
) -> None:
    edges = torch.tensor([[a, b] for a in (0.0, 1 - 2.0**-53) for b in (0.0, 0.5, 1 - 2.0**-53)])
    uniforms = torch.cat([random_uniforms(50), edges.double()])
    ids, probs = draw(codec(len(logits)), logits, uniforms)
    assert (probs.sum(-1) - 1).abs().max() < 1e-6
    assert (probs >= 0).all()
    assert (ids >= 0).all()
    assert (ids < len(logits)).all()
    # What carries weight has mass.
    assert not torch.isinf(logits[ids[probs > 0]]).any()


@pytest.mark.parametrize("name", ["peaked", "flat", "zipf", "steep zipf", "large zipf", "two ids"])
def test_random_uniforms_are_unbiased_within_five_standard_errors(name: str) -> None:
    """Masses of 13 sets of ids and of the five most probable ids, from 400 draws."""
    logits = SHAPES[name]
    subject = Varopt(12, 4, 8, len(logits))
    p = logits.double().softmax(-1)
    sets = torch.nn.functional.one_hot(torch.arange(len(p)) % 13, 13).double()
    top = torch.nn.functional.one_hot(p.topk(min(5, len(p))).indices, len(p)).double().T
    sets = torch.cat([sets, top], dim=1)
    ids, probs = draw(subject, logits, random_uniforms(400))
    masses = (probs.double()[..., None] * sets[ids]).sum(1)
    error = masses.mean(0) - p @ sets
    standard = masses.std(0) / len(masses) ** 0.5
    assert (error.abs() <= 5 * standard + 1e-6).all()


@pytest.mark.parametrize(
    ("name", "head"), [("flat", 4), ("zipf", 4), ("steep zipf", 9), ("large zipf", 4)]
)
def test_variance_is_the_known_one(name: str, head: int) -> None:
    """The squared error of one draw, summed over V, is sum over the tail of p_i (tau - p_i)."""
    logits = SHAPES[name]
    subject = Varopt(12, head, 16, len(logits))
    p = logits.double().softmax(-1)
    head, tau = threshold(p, 12, head)
    tail = p.sort(descending=True).values[head:]
    assert (tail <= tau * (1 + 1e-6)).all()
    theory = (tail * (tau - tail)).sum().item()
    measured = squared_errors(subject, logits, 600)
    assert measured.mean().item() == pytest.approx(theory, rel=0.03)


def squared_errors(subject: Varopt, logits: Tensor, count: int) -> Tensor:
    """Of each draw: sum over V of (t - p)^2, for draws without an id twice."""
    p = logits.double().softmax(-1)
    ids, probs = draw(subject, logits, random_uniforms(count))
    ordered = ids.sort(-1).values
    assert (ordered.diff(dim=-1) > 0).all()
    probs = probs.double()
    return (probs**2 - 2 * probs * p[ids]).sum(-1) + (p**2).sum()


@pytest.mark.parametrize("power", [1.0, 1.2, 1.5])
def test_variance_is_below_random_sampling_with_as_many_ids(power: float) -> None:
    logits = zipf(3000, power)
    p = logits.double().softmax(-1)
    # The most draws whose expected number of distinct ids is not above K, so that K ids hold them.
    draws = max(n for n in range(1, 200) if (1 - (1 - p) ** n).sum().item() <= 12)
    random_sampling = (p * (1 - p)).sum().item() / draws
    measured = squared_errors(Varopt(12, 6, 8, len(logits)), logits, 300)
    assert measured.mean().item() < random_sampling


def test_the_head_is_the_most_probable_ids_with_their_values() -> None:
    p = torch.tensor([0.05, 0.5, 0.02, 0.3] + [0.13 / 60] * 60)
    ids, probs = draw(Varopt(8, 4, 16, 64), p.log(), random_uniforms(20))
    assert ids[:, :3].tolist() == [[1, 3, 0]] * 20
    expected = torch.tensor([0.5, 0.3, 0.05]).expand(20, -1)
    assert torch.allclose(probs[:, :3], expected, atol=1 / (2**16 - 2))
    assert torch.allclose(probs[:, 3:], torch.tensor(0.15 / 5), atol=1 / (2**16 - 2))


def test_where_the_head_is_full_ids_above_tau_are_drawn_with_multiplicity() -> None:
    logits = SHAPES["more above tau than the head holds"]
    ids, probs = draw(Varopt(12, 1, 16, len(logits)), logits, random_uniforms(50))
    # Eleven slots of 0.876 / 11 each: an id of 0.124 is due 1.56 of them.
    assert (probs[:, 1:] - 0.876 / 11).abs().max() < 1e-4
    counts = (ids[:, 1:, None] == torch.arange(8)).sum(1)
    own = torch.arange(8) == ids[:, :1]
    assert ((counts == 1) | (counts == 2) | own).all()
    assert (counts[own] == 0).all()
    few = only(50, {1: 0.4, 2: 0.35, 3: 0.25})
    ids, probs = draw(Varopt(8, 1, 16, 50), few, random_uniforms(50))
    counts = (ids[:, 1:, None] == torch.tensor([2, 3])).sum(1)
    assert (ids[:, 0] == 1).all()
    assert ((counts[:, 0] == 4) | (counts[:, 0] == 5)).all()
    assert (counts.sum(-1) == 7).all()


def test_rounding_never_lets_an_id_without_mass_into_the_head() -> None:
    """Three probabilities that sum to a little over 1 leave a negative rest for the others."""
    logits = torch.full((300, 70), -torch.inf)
    logits[:, [3, 40, 69]] = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) / 8
    assert (logits.softmax(-1).double().sum(-1) > 1).any()
    subject = Varopt(12, 4, 8, 70)
    payload = subject.encode(logits, random_uniforms(300)).payload
    assert (payload[:, :3] < 255).all()
    assert (payload[:, 3] == 255).all()
    targets = subject.decode(payload)
    assert (targets.ids < 70).all()
    assert torch.isin(targets.ids[targets.probs > 0], torch.tensor([3, 40, 69])).all()


def test_the_last_point_falls_on_an_id_with_mass() -> None:
    """The float32 sum of a block may exceed its own ids; what lies behind it has no mass."""
    logits = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0))
    logits[:, 640:] = -torch.inf
    uniforms = torch.full((200, 2), 1 - 2.0**-53, dtype=torch.float64)
    subject = Varopt(12, 4, 8, 1000)
    targets = subject.decode(subject.encode(logits, uniforms).payload)
    assert (targets.ids[:, -1] == 639).all()


def test_layout_is_codes_then_ids() -> None:
    """A position over a vocabulary of 2048: 4 codes, 12 ids of two bytes."""
    subject = Varopt(12, 4, 8, 2048)
    assert subject.bytes_per_position == 4 + 24
    encoded = subject.encode(only(2048, {2047: 1.0})[None], torch.zeros(1, 2, dtype=torch.float64))
    payload = encoded.payload
    # One head of weight 1, three tail ids in the places of codes; then id 2047, little endian.
    assert payload[0].tolist() == [254, 255, 255, 255] + [255, 7] * 12


def test_what_packing_at_rest_needs_to_know() -> None:
    """The codes come first, and all ids behind the head are a multiset of one weight."""
    p = torch.tensor([0.05, 0.5, 0.02, 0.3] + [0.13 / 60] * 60)
    subject = Varopt(8, 4, 16, 64)
    assert (subject.prefix_bytes, subject.k, subject.vocab_size) == (8, 8, 64)
    rows = torch.stack([p.log(), torch.zeros(64), only(64, {7: 1.0})])
    payload = subject.encode(rows, random_uniforms(3)).payload
    heads = subject.ordered_ids(payload)
    assert heads.tolist() == [3, 0, 1]
    ids = from_bytes(payload[:, subject.prefix_bytes :], id_bytes(64))
    targets = subject.decode(payload)
    assert torch.equal(ids, targets.ids)
    for head, probs in zip(heads, targets.probs, strict=True):
        assert len(probs[head:].unique()) == 1
