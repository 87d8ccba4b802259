"""Which layers are chosen, at every count, and what a config keeps of them."""

from itertools import pairwise
from pathlib import Path

import pytest

from kdscale.config.initial import LayerChoice
from kdscale.errors import KdscaleError
from kdscale.models.init.layers import choose_layers
from tests.unit.models.teachers import make_teacher, plan, start


@pytest.mark.parametrize(
    ("kind", "count", "have", "layers"),
    [
        ("even", 2, 30, [0, 29]),
        ("even", 3, 30, [0, 15, 29]),
        ("even", 3, 5, [0, 2, 4]),
        ("even", 4, 5, [0, 1, 3, 4]),
        ("even", 4, 10, [0, 3, 6, 9]),
        ("ends", 2, 30, [0, 29]),
        ("ends", 4, 30, [0, 1, 28, 29]),
        ("ends", 5, 30, [0, 1, 2, 28, 29]),
        ("ends", 3, 3, [0, 1, 2]),
    ],
)
def test_rules_choose_layers(kind: str, count: int, have: int, layers: list[int]) -> None:
    choice = LayerChoice.model_validate({"kind": kind, "count": count})
    assert choose_layers(choice, have) == layers


@pytest.mark.parametrize("have", [2, 3, 12, 31])
def test_even_layers_are_as_even_as_can_be(have: int) -> None:
    for count in range(2, have + 1):
        layers = choose_layers(LayerChoice(kind="even", count=count), have)
        gaps = {b - a for a, b in pairwise(layers)}
        assert (len(layers), layers[0], layers[-1]) == (count, 0, have - 1)
        assert max(gaps) - min(gaps) <= 1
        assert min(gaps) >= 1


def test_layers_that_the_teacher_lacks_are_refused() -> None:
    with pytest.raises(KdscaleError, match=r"\[-1, 4\] are not among the teacher's layers 0 to 3"):
        choose_layers([0, -1, 4], 4)
    with pytest.raises(KdscaleError, match="asks for 6 layers of a teacher with 5"):
        choose_layers(LayerChoice(kind="ends", count=6), 5)


def test_what_a_config_says_layer_by_layer_goes_with_the_layers(tmp_path: Path) -> None:
    """SmolLM3 leaves rotary positions out of every fourth layer."""
    teacher = make_teacher(tmp_path, "smollm3")
    assert teacher.config.no_rope_layers == [1, 1, 1, 0, 1]
    planned = plan(tmp_path, teacher_layers=[3, 0])
    assert planned.config.no_rope_layers == [0, 1]
    assert planned.config.num_hidden_layers == 2
    student = start(tmp_path, teacher_layers=[3, 0])
    assert [layer.self_attn.use_rope for layer in student.model.layers] == [0, 1]
