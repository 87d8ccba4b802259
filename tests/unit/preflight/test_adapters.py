"""Adapters on a small copy of a student: those that its forward never reaches are refused."""

import pytest

from kdscale.config.lora import LoraConfig
from kdscale.errors import KdscaleError
from kdscale.preflight.small_model import Probe
from tests.architectures import tiny_config


def test_maps_that_the_forward_does_not_use_are_refused_with_the_names_of_the_others() -> None:
    # Its indexer only chooses positions, without a gradient.
    probe = Probe(tiny_config("axk2"), "student")
    with pytest.raises(
        KdscaleError, match=r"such as 'model\.layers\.0\.self_attn\.indexer\.wq_b'"
    ) as caught:
        probe.check_adapters(LoraConfig(r=2))
    names = caught.value.fix.partition("[")[2].partition("]")[0].split(", ")
    assert "down_proj" in names
    assert "wq_b" not in names
    probe.check_adapters(LoraConfig(r=2, target_modules=tuple(names)))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe"])
def test_all_linear_maps_of_common_architectures_are_reached(kind: str) -> None:
    Probe(tiny_config(kind), "student").check_adapters(LoraConfig(r=2))
