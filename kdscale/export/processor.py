"""Which instructions of this processor an export was checked with."""

import platform

import torch

# Of torch's names for what a processor can do, those that 8-bit products run on, fastest first.
_FOR_INT8 = (
    *("amx_int8", "avx512_vnni", "avx_vnni", "avx512_bw", "avx2", "sse4_1"),
    *("neon_i8mm", "neon_dot", "i8mm", "asimddp", "neon"),
)


def processor() -> dict[str, str]:
    """The architecture, and the instructions that 8-bit products run on; asked of the processor
    itself, so that an emulated one is told as what it emulates."""
    return {"architecture": platform.machine(), "instructions": _instructions()}


def _instructions() -> str:
    # Older releases of torch only tell which of their own kernels they chose.
    ask = getattr(torch.cpu, "get_capabilities", None)
    has = ask() if ask is not None else {}
    chosen = torch.backends.cpu.get_cpu_capability().lower()
    return next((name for name in _FOR_INT8 if has.get(name)), chosen)
