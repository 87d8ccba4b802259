"""Tests of Triton's kernels without a GPU: by its interpreter, and by its compiler."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton, which comes with torch's CUDA builds, is missing"
)


def run_interpreted(cases: Path) -> None:
    """Run a file of tests that pytest does not collect by itself; all must pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]


def compile_kernel(kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> None:
    """Compile a kernel for an H100, of which only the driver's part needs one."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [each.name for each in kernel.params]
    signature = {name: types.get(name, "constexpr") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
