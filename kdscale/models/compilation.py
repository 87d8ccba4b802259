"""Compilation of a model's layers by torch.compile, in place.

Layer by layer: they are alike, so that one is compiled for all of them, in a time that does not
grow with their number, and gradients of a layer are reduced while the one below computes. Names of
parameters stay as they are.
"""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError

_BACKEND = "inductor"


def check_compiler(device: torch.device) -> None:
    """Compile a small function for `device`. Raises KdscaleError where that fails.

    Only a trial tells: CPUs need a C++ compiler, GPUs Triton and a C compiler.
    """
    try:
        torch.compile(torch.sin, backend=_BACKEND)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler, of Triton, of the system
        raise KdscaleError(
            f"training.compile is true, and torch.compile does not work on this {device.type}: "
            f"{_cause(error)}",
            "Install a C++ compiler on the workers (apt-get install g++; GPUs also need Triton, "
            "which comes with torch), or set training.compile to false.",
        ) from error


def compile_layers(model: PreTrainedModel) -> None:
    """Let the layers of `model` be compiled when they are first called, in place.

    All of its body where it has no list of layers.
    """
    # Layers need not be split further for gradients to be reduced early; and the split refuses
    # flex_attention.
    torch._dynamo.config.optimize_ddp = False
    layers = list(_layers(model.base_model)) or [model.base_model]
    for layer in layers:
        layer.compile(backend=_BACKEND)


def _layers(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the entries of the outermost module lists inside of `module`."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def _cause(error: Exception) -> str:
    """Return the line of an error of torch.compile that says what failed: advice follows it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.endswith("raised:")]  # by which backend
    return said[0] if said else type(error).__name__
