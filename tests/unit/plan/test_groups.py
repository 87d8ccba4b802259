"""Groups of workers that hold a teacher together: their size, their link, the plan's figures."""

from pathlib import Path
from typing import Any

import pytest

from kdscale.config import dump_config, load_config, override, parse_config
from kdscale.distributed.groups import fits, ranks_of_node
from kdscale.errors import KdscaleError
from kdscale.plan.advise import advise
from kdscale.plan.cost import scaling
from kdscale.plan.groups import describe_groups, group_link, teacher_ranks
from kdscale.plan.hardware import find_hardware
from kdscale.plan.inputs import PlanInputs, read_inputs
from kdscale.plan.memory import capture_memory, distill_memory
from kdscale.plan.plan import make_plan
from kdscale.plan.timing import capture_seconds, online_forward_seconds
from tests.unit.plan.settings import setting

JOBS = Path(__file__).parents[3] / "jobs/configs"
WORKERS = {"count": 16, "gpus": 1}
MANY = 2e10  # tokens: else the start of the workers takes most of the time


def captured(hardware: str = "H100", tokens: float = MANY, **capture: Any) -> PlanInputs:
    """Return a run with sixteen workers, two machines of the large GPUs."""
    placed = {"workers": WORKERS, "micro_batch_size": 1, **capture}
    return setting(hardware, tokens, cache__capture=placed)


def small_memory(inputs: PlanInputs, share: float) -> PlanInputs:
    """Return the inputs with GPUs of which an eighth of the teacher takes this share."""
    weights = inputs.width * inputs.teacher.parameters
    memory = weights / 8 / share / 2**30
    hardware = inputs.hardware.model_copy(update={"memory_gib": memory})
    return PlanInputs(**{**vars(inputs), "hardware": hardware})


@pytest.mark.parametrize(
    ("group", "workers", "ranks"),
    [
        *(("auto", 16, 8), ("auto", 8, 8), ("auto", 4, 4), ("auto", 12, 12), ("auto", 1, 1)),
        *(("node", 16, 8), ("all", 16, 16), (4, 16, 4), (16, 16, 16), (3, 16, 16)),
    ],
)
def test_a_group_is_a_machine_a_number_or_all(group: Any, workers: int, ranks: int) -> None:
    assert teacher_ranks(group, workers, captured()) == ranks


def test_auto_takes_a_machine_where_a_share_leaves_half_of_the_memory() -> None:
    assert teacher_ranks("auto", 16, small_memory(captured(), 0.49)) == 8
    assert teacher_ranks("auto", 16, small_memory(captured(), 0.51)) == 16
    assert teacher_ranks("auto", 16, captured("A10G")) == 16  # one GPU a machine
    assert teacher_ranks("auto", 16, captured("cpu")) == 16
    assert not fits(1.0, 1, 100.0)


def test_the_ranks_of_a_node_are_equally_many_and_follow_each_other() -> None:
    assert ranks_of_node([0, 0, 1, 1]) == 2
    assert ranks_of_node([1, 1, 1, 0, 0, 0]) == 3
    assert ranks_of_node([0, 0, 0]) == 3
    assert ranks_of_node([0, 0, 1]) is None
    assert ranks_of_node([0, 1, 0, 1]) is None


@pytest.mark.parametrize(("ranks", "inside"), [(2, True), (8, True), (6, False), (16, False)])
def test_a_group_has_the_link_of_a_machine_where_it_does_not_reach_over(
    ranks: int, inside: bool
) -> None:
    assert group_link(ranks, 48, captured()) == (450e9 if inside else 50e9)


def test_a_forward_gathers_over_the_groups_own_link() -> None:
    small = captured(tokens=32 * 16)  # a shard, of one rank
    slow = small.hardware.model_copy(update={"link_gb_s": 1e-2, "network_gb_s": 1e-3})
    found = PlanInputs(**{**vars(small), "hardware": slow})
    weights = 2 * found.teacher.parameters
    changed = parse_config(dump_config(found.config), ["cache.capture.teacher_group=all"])
    every = found.with_config(changed)
    for inputs, ranks, link in ((found, 8, 1e7), (every, 16, 1e6)):
        seconds = capture_seconds(inputs)
        gathered = 16 * ((ranks - 1) / ranks * weights / link + (ranks - 1) * 20e-6)
        assert seconds.communication == pytest.approx(gathered - seconds.compute)
        memory = capture_memory(inputs).device
        assert memory["weights"] == weights // ranks


def test_an_online_teacher_has_groups_of_its_own() -> None:
    online = {"teacher_sharding": "zero3", "teacher_group": 4}
    changes = {"distill__workers": WORKERS, "distill__targets": "online"}
    four = setting("H100", **changes, distill__online=online)
    every = setting("H100", **changes, distill__online=online | {"teacher_group": "all"})
    weights = 2 * four.teacher.parameters
    least, most = (distill_memory(each).device["online teacher"] for each in (every, four))
    assert most - least == weights // 4 - weights // 16
    assert online_forward_seconds(four)[1] < online_forward_seconds(every)[1]


def test_machines_that_are_not_filled_equally_are_refused() -> None:
    unequal = captured(workers={"count": 12, "gpus": 1}, teacher_group="node")
    with pytest.raises(KdscaleError, match="12 workers do not fill machines of 8 H100 equally"):
        make_plan(unequal)
    with pytest.raises(KdscaleError, match="machines of 1 A10G equally, with two or more"):
        make_plan(captured("A10G", teacher_group="node"))


def test_the_advice_is_a_machine_where_gathering_between_them_is_slow() -> None:
    config = load_config(JOBS / "qwen3-235b.yaml", ["cache.capture.teacher_group=all"])
    hardware = find_hardware("H200").model_copy(update={"network_gb_s": 6.25})
    shape = str(JOBS / "shapes/qwen3-235b-a22b")
    found = advise(read_inputs(config, hardware, tokens=1e11, teacher_shape=shape))
    (capture,) = [each for each in found if each.stage == "cache"]
    assert capture.changes == ("cache.capture.teacher_group=auto",)
    assert capture.device_hours < 0.1 * capture.before
    assert capture.computing > 0.97


def test_where_workers_do_not_fill_machines_the_advice_is_a_part_of_one() -> None:
    workers = {"count": 12, "gpus": 1}
    changes = [f"cache.capture.workers={workers}", "cache.capture.teacher_group=all"]
    config = load_config(JOBS / "llama-70b.yaml", changes)
    hardware = find_hardware("H100").model_copy(update={"network_gb_s": 1.0})
    shape = str(JOBS / "shapes/llama-3.1-70b")
    inputs = read_inputs(config, hardware, tokens=1e10, teacher_shape=shape)
    capture = next(each for each in advise(inputs) if each.stage == "cache")
    (group,) = [each for each in capture.changes if "teacher_group" in each]
    assert group == "cache.capture.teacher_group=4"  # two hold no 141 GB, six reach over
    changed = inputs.with_config(override(config, [group]))
    assert teacher_ranks(4, 12, changed) == 4
    assert capture.device_hours < 0.9 * capture.before


def test_the_plan_says_what_is_gathered_where() -> None:
    (line,) = describe_groups(captured())
    assert line.endswith("sharded over groups of 8 workers and gathered at 450 GB/s.")
    (line,) = describe_groups(captured(teacher_group="all"))
    assert line.endswith("sharded over all 16 workers and gathered at 50 GB/s.")
    assert describe_groups(captured(teacher_sharding="none")) == []


def test_scaling_has_other_numbers_of_workers_than_a_group_divides() -> None:
    assert [row.devices for row in scaling(captured(teacher_group=16))] == [1, 8, 64, 256, 1024]
