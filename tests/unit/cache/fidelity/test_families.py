import pytest
import yaml
from pydantic import TypeAdapter

from kdscale.cache.fidelity.codec_families import (
    FAMILIES,
    as_yaml,
    distinct,
    family_name,
    size_of,
    size_within,
)
from kdscale.config.cache import CodecConfig, FullCodec, SampleCodec, TopkCodec, VaroptCodec

CONFIGS = [
    VaroptCodec(k=9, head=2, head_bits=16),
    SampleCodec(draws=7, tau=0.5),
    TopkCodec(k=3, value_bits=8),
    FullCodec(),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_yaml_is_the_config(config: CodecConfig) -> None:
    adapter: TypeAdapter[CodecConfig] = TypeAdapter(CodecConfig)
    assert adapter.validate_python(yaml.safe_load(as_yaml(config))["codec"]) == config


def test_families_have_names_of_their_own_and_codecs_of_every_size() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        for size in range(family.least, 40):
            config = family.make(size)
            assert size_of(config) == size
            assert family_name(config) == family.name


def test_sizes_bracket_a_budget_and_respect_the_vocabulary() -> None:
    head_of_8 = FAMILIES[2]
    assert head_of_8.least == 9
    assert head_of_8.sizes(16, 50_000) == [9, 16, 32]
    assert head_of_8.sizes(400, 50_000) == [100, 128]
    assert head_of_8.sizes(16, 20) == [9, 16, 20]
    assert head_of_8.sizes(16, 8) == []


def test_size_within() -> None:
    measured = {4: 5.0, 8: 9.0, 16: 16.0}
    assert size_within(4.9, measured) is None
    assert size_within(5.0, measured) == 4
    assert size_within(8.9, measured) == 7
    assert size_within(14.3, measured) == 14
    assert size_within(99.0, measured) == 16


def test_distinct_keeps_the_order() -> None:
    assert distinct([*CONFIGS, CONFIGS[1], VaroptCodec(k=9, head=2, head_bits=16)]) == CONFIGS
