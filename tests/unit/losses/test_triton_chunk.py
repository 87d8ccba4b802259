"""The Triton kernels hold against dense float64, see interpreted.py."""

from pathlib import Path

import pytest

from tests.triton_interpreter import compile_kernel, needs_triton, run_interpreted


@needs_triton
def test_kernels_in_tritons_interpreter() -> None:
    run_interpreted(Path(__file__).with_name("interpreted.py"))


@needs_triton
@pytest.mark.parametrize("has_ghost", [False, True])
def test_the_kernel_of_sparse_targets_compiles_for_a_gpu(has_ghost: bool) -> None:
    from kdscale.losses import triton_chunk

    types = {"logits": "*bf16", "row_stride": "i32", "labels": "*i64", "hard": "*fp32"}
    types |= {"ids": "*i64", "probs": "*fp32", "ghosts": "*fp32", "values": "*fp32"}
    types |= dict.fromkeys(("weight", "scale", "cap"), "fp32")
    constants = {"VOCAB": 300, "K": 5, "ENTRIES": 8, "HAS_CAP": True, "BLOCK": 256}
    compile_kernel(triton_chunk._sparse_kernel, types, constants | {"HAS_GHOST": has_ghost})


@needs_triton
@pytest.mark.parametrize(
    ("kind", "is_mixed"),
    [
        ("forward_kl", False),
        ("forward_kl", True),
        ("reverse_kl", False),
        ("jensen_shannon", False),
        ("skewed_kl", False),
        ("skewed_reverse_kl", False),
        ("total_variation", False),
    ],
)
def test_kernels_beside_a_teacher_compile_for_a_gpu(kind: str, is_mixed: bool) -> None:
    from kdscale.losses import triton_dense

    types = {"logits": "*bf16", "values": "*fp32", "labels": "*i64", "hard": "*fp32"}
    types |= {"teacher": "*bf16", "row_stride": "i32", "teacher_stride": "i32"}
    numbers = ("weight", "temperature", "teacher_temperature", "teacher_share", "scale", "cap")
    types |= dict.fromkeys((*numbers, "share"), "fp32")
    constants = {"VOCAB": 300, "IS_MIXED": is_mixed, "HAS_CAP": True, "KIND": kind, "BLOCK": 256}
    compile_kernel(triton_dense._dense_kernel, types, constants)
