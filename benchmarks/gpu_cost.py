"""Bytes, FLOPs and kernels of what a record of fake CUDA tensors holds."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kdscale.cache.codecs.vocab_blocks import BLOCK
from kdscale.plan.roofline import Rates
from tests.gpu.fake_cuda import Facts, Operation, Record

# Softmax of a row that is too long for a block's memory: maximum, sum, and the result.
_SOFTMAX_READS = 3
_SOFTMAX = ("_softmax", "_log_softmax", "softmax", "log_softmax")
_GATHERS = ("gather", "index", "index_select", "embedding", "searchsorted")
_SCATTERS = ("scatter_", "scatter_add_", "index_add_", "index_put_", "scatter", "scatter_add")
_KERNELS = {"sort": 4, "topk": 3, "varopt": 2}
# Memory that is taken, and views that the schema does not say to be any.
_NOTHING = (
    *("empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view", "lift_fresh"),
    "_local_scalar_dense",
)
_READS_NOTHING = ("fill_", "zero_", "ones_like", "zeros_like", "full_like", "new_zeros", "new_ones")


@dataclass(frozen=True)
class Cost:
    """Cost of some operations on a device."""

    kernels: int = 0
    nbytes: int = 0  # of the device's memory, read and written
    flops: int = 0  # of matrix products
    seconds: float = 0.0  # at least; products included
    products: float = 0.0  # seconds of the matrix products

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.kernels + other.kernels,
            self.nbytes + other.nbytes,
            self.flops + other.flops,
            self.seconds + other.seconds,
            self.products + other.products,
        )


def cost_of(record: Record, rates: Rates) -> Cost:
    """Return the cost of all that is on record."""
    return sum((_cost(each, rates) for each in record.operations), Cost())


def costs_by_place(record: Record, rates: Rates) -> dict[tuple[str, str], Cost]:
    """Return the costs by operator and place, from the dearest down."""
    found: dict[tuple[str, str], Cost] = defaultdict(Cost)
    for each in record.operations:
        found[each.name, each.place] += _cost(each, rates)
    return dict(sorted(found.items(), key=lambda item: -item[1].seconds))


def _cost(each: Operation, rates: Rates) -> Cost:
    if not each.is_on_device or each.is_view or each.name in _NOTHING:
        return Cost()
    factors = each.factors
    nbytes, kernels = _bytes(each), _KERNELS.get(each.name, 1)
    if factors is None:
        return Cost(kernels, nbytes, 0, rates.seconds(nbytes, kernels=kernels))
    left, right = factors
    flops = 2 * _count(left) * right.shape[-1]
    halves = left.dtype != torch.float32
    seconds = rates.seconds(nbytes, flops, kernels=kernels, halves=halves)
    return Cost(kernels, nbytes, flops, seconds, seconds)


def _count(facts: Facts) -> int:
    return int(torch.Size(facts.shape).numel())


def _bytes(each: Operation) -> int:
    """Return the bytes that an operation reads and writes."""
    rule = _RULES.get(each.name)
    if rule is not None:
        return rule(each)
    return _sum(each.inputs) + _sum(each.outputs)


def _sum(tensors: tuple[Facts, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _softmax(each: Operation) -> int:
    return _SOFTMAX_READS * each.inputs[0].nbytes + _sum(each.outputs)


def _gather(each: Operation) -> int:
    return 2 * _sum(each.outputs) + _sum(each.inputs[1:])


def _scatter(each: Operation) -> int:
    rest = each.inputs[1:]
    return _sum(rest) + 2 * max((tensor.nbytes for tensor in rest), default=0)


def _write(each: Operation) -> int:
    return _sum(each.outputs)


def _copy(each: Operation) -> int:
    return each.inputs[1].nbytes + _sum(each.outputs)


def _sparse_chunk(each: Operation) -> int:
    """Twice read, once written, and what is small."""
    return 3 * each.inputs[0].nbytes + _sum(each.inputs[1:]) + _sum(each.outputs)


def _dense_chunk(each: Operation) -> int:
    """As a sparse one; the teacher's logits are read twice, too."""
    return _sparse_chunk(each) + max(tensor.nbytes for tensor in each.inputs[1:])


def _divergence_chunk(each: Operation) -> int:
    """As a dense one, with a pass over both logits for the divergence itself."""
    return _dense_chunk(each) + each.inputs[0].nbytes + max(t.nbytes for t in each.inputs[1:])


def _encoder(each: Operation) -> int:
    """Logits once, blocks' sums written and read, and a block again for each id that is found.

    Sums are three float32 and, running, a float64 that is searched in a few places.
    """
    logits = each.inputs[0]
    positions, vocab_size = logits.shape
    sums = (2 * 3 * 4 + 8) * positions * -(-vocab_size // BLOCK)
    found = sum(_count(tensor) for tensor in each.outputs if len(tensor.shape) == 2)
    again = found * BLOCK * logits.nbytes // _count(logits)
    return logits.nbytes + sums + again + _sum(each.inputs[1:]) + _sum(each.outputs)


_RULES: dict[str, Callable[[Operation], int]] = {
    **dict.fromkeys(_SOFTMAX, _softmax),
    **dict.fromkeys(_GATHERS, _gather),
    **dict.fromkeys(_SCATTERS, _scatter),
    **dict.fromkeys(_READS_NOTHING, _write),
    "copy_": _copy,
    "sparse_chunk": _sparse_chunk,
    "dense_chunk": _dense_chunk,
    "divergence_chunk": _divergence_chunk,
    "varopt": _encoder,
}
