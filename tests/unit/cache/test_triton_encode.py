"""Encoding by Triton holds against torch and float64, see interpreted.py."""

from pathlib import Path

import pytest

from tests.triton_interpreter import compile_kernel, needs_triton, run_interpreted

TYPES = {
    "row_stride": "i32",
    "maxima": "*fp32",
    "sums": "*fp32",
    "moments": "*fp32",
    "temperature": "fp32",
}
DRAWS = {
    "uniforms": "*fp64",
    "running": "*fp64",
    "codes": "*i32",
    "drawn": "*i32",
    "entropy": "*fp32",
    "log_norm": "*fp32",
    "steps": "i32",
}


@needs_triton
def test_encoders_in_tritons_interpreter() -> None:
    run_interpreted(Path(__file__).with_name("interpreted.py"))


@needs_triton
@pytest.mark.parametrize("vocab", [8, 151_669])
@pytest.mark.parametrize("logits", ["*bf16", "*fp32"])
def test_encoders_compile_for_a_gpu(vocab: int, logits: str) -> None:
    from kdscale.cache.codecs import triton_encode

    blocks = -(-vocab // 128)
    types = TYPES | {"logits": logits}
    constants = {"VOCAB": vocab, "IS_WARM": logits == "*fp32"}
    if blocks == 1:
        constants["blocks"] = 1  # as Triton takes an argument that is 1
    else:
        types["blocks"] = "i32"
    compile_kernel(triton_encode._block_sums_kernel, types, constants | {"ROWS": min(16, blocks)})
    slots = {"K": 4, "HEAD": 2, "SLOTS": 4, "BLOCKS": 1 << (blocks - 1).bit_length()}
    slots["SEARCHES"] = (blocks - 1).bit_length()
    compile_kernel(triton_encode._varopt_kernel, types | DRAWS, constants | slots)
