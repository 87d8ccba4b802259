"""Products of halves into float32 against float64."""

import pytest
import torch

from kdscale.losses.products import add_product, multiply


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_products_are_rounded_to_float32_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((20, 300), (300, 12))
    )
    exact = left.double() @ right.double()
    out = torch.empty(20, 12)
    multiply(left, right, out)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)
    add_product(left, right, out)
    torch.testing.assert_close(out.double(), 2 * exact, rtol=1e-5, atol=1e-4)


def test_transposed_factors_and_memory_with_longer_rows() -> None:
    left, right = torch.arange(6.0).view(3, 2).bfloat16(), torch.arange(12.0).view(3, 4).bfloat16()
    out = torch.zeros(2, 64)[:, :4]
    add_product(left.T, right, out)
    torch.testing.assert_close(out, (left.float().T @ right.float()))
