"""Fake CUDA tensors on any machine, and a record of what a GPU would be asked to do.

    with fake_cuda() as record:
        hidden = torch.empty(64, 16, device=CUDA, dtype=torch.bfloat16)
        ...
    record.syncs, record.products(torch.float32)

Tensors are torch's fake ones: they have a shape, strides, a dtype and a device, and no values. So
autocast, dtypes and devices are those of a GPU, while sizes that depend on values are not known: a
boolean index takes every position, and a number that is read on the host is False, 0 or 1.0. An
operation on tensors of several devices fails at once. Not run are backwards: torch's engine asks
for a device that is there. `torch.autograd.grad` gives tensors of the right shape instead.
"""

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kdscale

CUDA = torch.device("cuda", 0)

_PACKAGE = str(Path(kdscale.__file__).parent)
# Matrix products, and how many of their arguments stand before the two factors.
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1}
_ATTENTION = "_scaled_dot_product"
_READS_VALUES = ("masked_select", "repeat_interleave", "unique_dim", "_unique2", "equal")


class MixedDevicesError(AssertionError):
    """An operation got tensors of several devices."""


@dataclass(frozen=True)
class Facts:
    """What is known of a tensor that an operation took or gave."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    nbytes: int
    """Bytes of memory: a dimension of stride 0 counts once."""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Facts":
        """Take them from a tensor."""
        count = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            count *= size if stride else min(size, 1)
        nbytes = count * tensor.element_size()
        return cls(tuple(tensor.shape), tensor.dtype, tensor.device.type, nbytes)


@dataclass(frozen=True)
class Operation:
    """One call of an aten operator."""

    name: str
    inputs: tuple[Facts, ...]
    """All but `out`, which is among the outputs."""

    outputs: tuple[Facts, ...]
    is_view: bool
    """True if nothing runs: the result is memory of an input."""

    place: str
    """File and line of the innermost frame in kdscale/, `?` for none."""

    sync: str | None = None
    """Why the host waits for the device here, if it does."""

    @property
    def factors(self) -> tuple[Facts, Facts] | None:
        """The factors of a matrix product; query and key of an attention."""
        if self.name.startswith(_ATTENTION):
            return self.inputs[0], self.inputs[1]
        if self.name not in _PRODUCTS:
            return None
        first = _PRODUCTS[self.name]
        return self.inputs[first], self.inputs[first + 1]

    @property
    def is_on_device(self) -> bool:
        """True if it runs on the GPU."""
        return any(each.device == "cuda" for each in (*self.inputs, *self.outputs))


@dataclass
class Record:
    """Operations in order."""

    operations: list[Operation] = field(default_factory=list)

    @property
    def syncs(self) -> Counter[tuple[str, str]]:
        """How often the host waits, by reason and place."""
        return Counter((each.sync, each.place) for each in self.operations if each.sync)

    def products(self, dtype: torch.dtype) -> list[str]:
        """Name, shapes and places of the matrix products in `dtype` on the device.

        Outer products, in which nothing is added up (rotary embeddings have one), are left out.
        """
        return [
            f"{each.name} {factors[0].shape} {factors[1].shape} at {each.place}"
            for each in self.operations
            if each.is_on_device and (factors := each.factors) is not None
            if factors[0].dtype == dtype and factors[0].shape[-1] > 1
        ]

    def clear(self) -> None:
        """Forget what has run so far."""
        self.operations.clear()


@cache
def why_not() -> str | None:
    """Make CUDA's dispatch work here; return why it cannot, or None."""
    if torch.backends.cuda.is_built():
        return None
    if shutil.which("c++") is None and shutil.which("g++") is None:
        return "fake CUDA tensors need a C++ compiler"
    from torch.utils import cpp_extension

    # The library stays loaded when the folder is gone.
    with tempfile.TemporaryDirectory(prefix="guard-") as folder:
        source = str(Path(__file__).with_name("guard.cpp"))
        try:
            cpp_extension.load(
                "fake_cuda_guard", [source], build_directory=folder, is_python_module=False
            )
        except (RuntimeError, OSError) as error:
            return f"the guard of fake CUDA tensors cannot be built: {error}"
    return None


@contextmanager
def fake_cuda() -> Iterator[Record]:
    """Inside, tensors are fake, `torch.device("cuda")` works, and so does its autocast.

    Call `why_not` first. The record has what ran inside.
    """
    record = Record()
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.autograd.grad", _shapes_of_gradients),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", _fused_attention),
        FakeTensorMode(allow_non_fake_inputs=True),
        _Recorder(record),
    ):
        yield record


def _shapes_of_gradients(_: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    listed = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return tuple(torch.empty_like(each) for each in listed)


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attend by the kernel that takes masks: a build without CUDA would choose none of them."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    out: torch.Tensor = fused(
        query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale
    )[0]
    return out


class _Recorder(TorchDispatchMode):
    """Put every operation on record, and answer for those that read values."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        namespace, name = func.overloadpacket._qualified_op_name.split("::")
        if namespace == "prim":  # asks for the device
            return func(*args, **kwargs)
        tensors = _tensors(args) + _tensors({k: v for k, v in kwargs.items() if k != "out"})
        out = _tensors(kwargs.get("out"))
        _check_devices(name, [*tensors, *out])
        answer = _answer(name, args)
        result = func(*args, **kwargs) if answer is None else answer
        self._record.operations.append(
            Operation(
                name,
                tuple(map(Facts.of, tensors)),
                tuple(map(Facts.of, _tensors(result))),
                func.is_view,
                _place(),
                _sync(name, args, kwargs, tensors, _tensors(result)),
            )
        )
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            name = Path(frame.f_code.co_filename).relative_to(_PACKAGE).as_posix()
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return "?"


def _check_devices(name: str, tensors: list[torch.Tensor]) -> None:
    """Refuse several devices. A number on the host may join: kernels take it as an argument."""
    devices = {each.device.type for each in tensors if each.ndim or each.device.type == "cuda"}
    if len(devices) > 1 and name not in ("copy_", "_to_copy"):
        what = ", ".join(f"{each.device.type} {tuple(each.shape)}" for each in tensors)
        raise MixedDevicesError(f"{name} of {what} at {_place()}")


def _masks(name: str, args: Any) -> list[torch.Tensor]:
    """Return the boolean indices of an operation."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return []
    return [each for each in args[1] if each is not None and each.dtype == torch.bool]


def _answer(name: str, args: Any) -> Any:
    """Return what an operation gives that reads values, which fake tensors have not."""
    if name == "_local_scalar_dense":
        kind = args[0].dtype
        return False if kind == torch.bool else 1.0 if kind.is_floating_point else 0
    if name == "nonzero":
        return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
    if name == "index" and _masks(name, args):
        (mask,) = args[1]
        return args[0].new_empty((mask.numel(), *args[0].shape[mask.ndim :]))
    if name.startswith(("index_put", "_index_put")) and _masks(name, args):
        return args[0]
    return None


def _sync(
    name: str,
    args: Any,
    kwargs: dict[str, Any],
    inputs: list[torch.Tensor],
    outputs: list[torch.Tensor],
) -> str | None:
    """Return why the host waits for the device, or None."""
    on_device = any(each.device.type == "cuda" for each in inputs)
    if on_device and name == "_local_scalar_dense":
        return "a number read on the host"
    if on_device and (name == "nonzero" or name in _READS_VALUES):
        return f"{name}, whose size depends on values"
    if on_device and _masks(name, args) and not (name != "index" and args[2].numel() == 1):
        # With one number to write it is a masked fill.
        return "a boolean index"
    if name in ("copy_", "_to_copy"):
        # A copy to another device.
        source, target = (inputs[1], inputs[0]) if name == "copy_" else (inputs[0], outputs[0])
        ends = source.device.type, target.device.type
        does_not_wait = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
        if ends[0] != ends[1] and not does_not_wait:
            return f"a copy from {ends[0]} to {ends[1]}"
    return None
