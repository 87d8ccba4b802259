"""The Triton kernels hold against dense float64, see interpreted.py."""

from pathlib import Path

from tests.triton_interpreter import needs_triton, run_interpreted


@needs_triton
def test_kernels_in_tritons_interpreter() -> None:
    run_interpreted(Path(__file__).with_name("interpreted.py"))
