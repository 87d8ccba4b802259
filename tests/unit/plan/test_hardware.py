"""Rows of the table of hardware, by the names that torch gives GPUs."""

import pytest

from kdscale.plan.hardware import TABLE, gpu_hardware


@pytest.mark.parametrize(
    ("device", "row"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_gpu_is_found_by_its_name(device: str, row: str | None) -> None:
    found = gpu_hardware(device)
    assert (found.name if found else None) == row


def test_every_gpu_has_a_design_power() -> None:
    assert all(row.watts and row.watts_source for row in TABLE)
    assert {row.name: row.watts for row in TABLE}["H100"] == 700
