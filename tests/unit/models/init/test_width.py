"""Narrower copies: what is kept, against slicing written out by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from kdscale.errors import KdscaleError
from kdscale.models.init.width import Kept, Sizes, WidthStatistics, choose
from tests.unit.models.teachers import (
    GROUPS,
    HEAD,
    HEADS,
    HIDDEN,
    NEURONS,
    SLICED,
    keep,
    make_teacher,
    narrow,
    plan,
    start,
)

SMALL = {
    "hidden_size": 18,
    "intermediate_size": 7,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
IDS = torch.arange(10)[None]


def naive(name: str, full: torch.Tensor, kept: Kept, layer: int) -> torch.Tensor:
    """Return the teacher's tensor `full` cut as the student's `name` should be, by cases."""
    hidden, whole = list(kept.hidden), full.numpy()
    neurons, queries, keys = (list(k[layer]) for k in (kept.neurons, kept.queries, kept.keys))
    for kind, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        if kind in name:
            part = np.array([whole[row] for row in rows])
            return torch.tensor(part if "bias" in name else part[:, hidden])
    if "gate_proj" in name or "up_proj" in name:
        part = np.array([whole[neuron] for neuron in neurons])
        return torch.tensor(part if "bias" in name else part[:, hidden])
    if "o_proj" in name or "down_proj" in name:
        columns = queries if "o_proj" in name else neurons
        part = np.array([whole[channel] for channel in hidden])
        return torch.tensor(part if "bias" in name else part[:, columns])
    if "embed" in name or "lm_head" in name:
        return torch.tensor(whole[:, hidden])
    return full if "q_norm" in name or "k_norm" in name else torch.tensor(whole[hidden])


@pytest.mark.parametrize("architecture", SLICED)
def test_a_narrower_student_is_cut_as_by_hand(tmp_path: Path, architecture: str) -> None:
    biases: dict[str, Any] = {}
    if architecture in ("llama", "smollm3"):
        biases = {"attention_bias": True, "mlp_bias": True}
    teacher = make_teacher(tmp_path, architecture, **biases)
    planned = plan(tmp_path, **narrow(**SMALL))
    kept = keep(planned, teacher)
    student = start(tmp_path, teacher, **narrow(**SMALL))
    theirs, mine = teacher.state_dict(), student.state_dict()
    for name, tensor in mine.items():
        layer = next((i for i in (0, 1) if f"layers.{i}." in name), 0)
        other = name.replace("layers.1.", "layers.3.")
        assert torch.equal(tensor, naive(name, theirs[other], kept, layer)), name
    assert [len(kept.hidden), *map(len, kept.neurons)] == [18, 7, 7]
    assert [*map(len, kept.queries), *map(len, kept.keys)] == [12, 12, 6, 6]


@pytest.mark.parametrize("architecture", SLICED)
def test_a_student_that_keeps_all_is_its_teacher(tmp_path: Path, architecture: str) -> None:
    teacher = make_teacher(tmp_path, architecture)
    fields = narrow(hidden_size=HIDDEN) | {"teacher_layers": {"kind": "even", "count": 5}}
    student = start(tmp_path, teacher, **fields)
    assert torch.equal(student(input_ids=IDS).logits, teacher(input_ids=IDS).logits)


@pytest.mark.parametrize("architecture", SLICED)
def test_a_narrower_student_can_be_saved(tmp_path: Path, architecture: str) -> None:
    teacher = make_teacher(tmp_path / "teacher", architecture)
    student = start(tmp_path / "teacher", teacher, **narrow(**SMALL))
    student.save_pretrained(tmp_path / "student")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    assert torch.equal(again(input_ids=IDS).logits, student(input_ids=IDS).logits)
    assert again.config.hidden_size == 18


@torch.no_grad()
def test_dead_dimensions_are_dropped_and_not_missed(tmp_path: Path) -> None:
    """Channels, neurons and heads that carry nothing are dropped first.

    The logits without the dead neurons and heads are those with them.
    """
    teacher = make_teacher(tmp_path)
    neurons, group = [2, 11], 1
    for layer in teacher.model.layers:
        layer.mlp.up_proj.weight[neurons] = 0
        layer.self_attn.v_proj.weight[group * HEAD : (group + 1) * HEAD] = 0
    channels = [0, 23]
    for name, parameter in teacher.named_parameters():
        if "norm" in name:
            parameter[channels] = 0
    teacher.save_pretrained(tmp_path)
    planned = plan(tmp_path, **narrow(hidden_size=22, intermediate_size=18, num_key_value_heads=1))
    assert planned.narrowing is not None
    assert planned.narrowing[0] == Sizes(hidden=22, neurons=18, heads=2, groups=1, head=HEAD)
    kept = keep(planned, teacher)
    assert set(range(HIDDEN)) - set(kept.hidden) == set(channels)
    for layer in (0, 1):
        assert set(range(NEURONS)) - set(kept.neurons[layer]) == set(neurons)
        assert list(kept.queries[layer]) == list(range(2 * HEAD))
        assert list(kept.keys[layer]) == list(range(HEAD))
    same = narrow(intermediate_size=18, num_key_value_heads=1) | {"teacher_layers": [0, 1, 2, 3, 4]}
    student = start(tmp_path, teacher, **same)
    mine, theirs = student(input_ids=IDS).logits, teacher(input_ids=IDS).logits
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def statistics(**fields: Any) -> WidthStatistics:
    """Of two layers where everything is equally active, but for `fields`."""
    same = {
        "channels": np.ones((3, HIDDEN)),
        "neurons": np.ones((2, NEURONS)),
        "heads": np.ones((2, HEADS)),
    }
    return WidthStatistics(**(same | fields))


TEACHER = Sizes(HIDDEN, NEURONS, HEADS, GROUPS, HEAD)


def test_equally_active_dimensions_are_kept_from_the_front() -> None:
    kept = choose(Sizes(4, 3, 2, 1, HEAD), TEACHER, [1], statistics())
    assert list(kept.hidden) == [0, 1, 2, 3]
    assert [list(n) for n in kept.neurons] == [[0, 1, 2]]


def test_a_query_head_stays_with_its_keys() -> None:
    """Query heads 0 and 1 share keys 0, 2 and 3 keys 1."""
    heads = np.array([[5.0, 0.0, 3.0, 3.0], [0.0, 9.0, 1.0, 2.0]])
    measured = statistics(heads=heads)
    one_group = choose(Sizes(HIDDEN, NEURONS, 2, 1, 1), TEACHER, [0, 1], measured)
    assert [list(q) for q in one_group.queries] == [[2, 3], [0, 1]]
    assert [list(k) for k in one_group.keys] == [[1], [0]]
    # Where one head of a group is kept, the group is worth what that head is.
    one_head = choose(Sizes(HIDDEN, NEURONS, 1, 1, 1), TEACHER, [0, 1], measured)
    assert [list(q) for q in one_head.queries] == [[0], [1]]
    one_each = choose(Sizes(HIDDEN, NEURONS, 2, 2, 1), TEACHER, [1], measured)
    assert list(one_each.queries[0]) == [1, 3]
    assert list(one_each.keys[0]) == [0, 1]


def test_layers_that_are_not_taken_have_no_say() -> None:
    channels = np.ones((3, HIDDEN))
    channels[0, 20], channels[1, 21], channels[2, 22] = 9, 5, 4
    sizes = Sizes(2, NEURONS, HEADS, GROUPS, HEAD)
    measured = statistics(channels=channels)
    assert list(choose(sizes, TEACHER, [1], measured).hidden) == [21, 22]
    assert list(choose(sizes, TEACHER, [0], measured).hidden) == [20, 22]
    assert list(choose(sizes, TEACHER, [1, 0], measured).hidden) == [20, 21]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 25}, "width.hidden_size 25 is more than the teacher's 24"),
        ({"intermediate_size": 21}, "width.intermediate_size 21 is more than the teacher's 20"),
        ({"num_attention_heads": 6}, "width.num_attention_heads 6 is more than the teacher's 4"),
        ({"num_key_value_heads": 3}, "width.num_key_value_heads 3 is more than the teacher's 2"),
        ({"num_attention_heads": 3}, "3 query heads cannot share 2 key and value heads"),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 1},
            "4 query heads cannot share 1 key and value heads of a teacher where 2 share one",
        ),
        ({"hidden_size": 22}, r"transformers refuses a 'llama'.*hidden size \(22\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    tmp_path: Path, sizes: dict[str, int], message: str
) -> None:
    make_teacher(tmp_path)
    with pytest.raises(KdscaleError, match=message):
        plan(tmp_path, **narrow(**sizes))


def test_an_architecture_without_known_axes_is_refused(tmp_path: Path) -> None:
    make_teacher(tmp_path, "gpt2")
    with pytest.raises(KdscaleError, match="'gpt2' cannot be made narrower"):
        plan(tmp_path, **narrow(hidden_size=12))
