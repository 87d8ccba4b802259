"""Time by cause, computed again by hand at the boundaries: rounds, ranks, what hides what."""

import math
from typing import Any

import pytest

from kdscale.plan.cache_size import Requests
from kdscale.plan.calibration import Calibration
from kdscale.plan.cost import break_even, scaling, store_money
from kdscale.plan.hardware import find_hardware
from kdscale.plan.timing import (
    all_reduce,
    capture_seconds,
    distill_seconds,
    evaluate_seconds,
    online_forward_seconds,
    rate,
    seconds_of,
    training_seconds,
)
from tests.unit.plan.settings import setting

MEASURED = Calibration(
    hardware="cpu",
    device="cpu",
    created="2026-01-01T00:00:00+00:00",
    workers=2,
    forward_flops=1e9,
    training_flops=2e9,
    teacher_flops=3e9,
    encode_tokens=1e4,
    put_bytes=1e8,
    get_bytes=1e8,
    latency_seconds=0.01,
    start_up_seconds=20,
    base_bytes=5 << 20,
)


def test_a_rate_is_peak_times_utilisation_or_what_was_measured() -> None:
    found = setting("H100")
    workers = found.config.cache.capture.workers
    assert rate(found, workers, training=False) == pytest.approx(0.40 * 989e12)
    assert rate(found, workers, training=True) == pytest.approx(0.35 * 989e12)
    measured = found.with_measured(MEASURED)
    assert rate(measured, workers, training=True) == 2e9


@pytest.mark.parametrize(("workers", "units"), [(1, 40), (2, 20), (40, 1), (41, 1), (1024, 1)])
def test_capture_takes_as_many_rounds_as_the_busiest_rank(workers: int, units: int) -> None:
    found = setting(
        "H100",
        cache__capture={"workers": {"count": workers, "gpus": 1}, "teacher_sharding": "none"},
    )
    flops = units * 16 * 32 * found.teacher.forward_flops(32)
    expected = flops / (0.40 * 989e12)
    assert capture_seconds(found).compute == pytest.approx(expected)
    assert capture_seconds(found).communication == 0


def test_zero_3_waits_for_what_gathering_takes_longer() -> None:
    whole = {"workers": {"count": 16, "gpus": 1}, "teacher_group": "all"}
    found = setting("A100-80", cache__capture=whole)
    seconds = capture_seconds(found)
    forwards = 3 * 2  # rounds of 16 ranks over 40 units, 16 rows in micro-batches of 8
    moved = 15 / 16 * 2 * found.teacher.parameters
    gather = moved / 6.25e9 + 15 * 20e-6
    assert seconds.communication == pytest.approx(forwards * gather - seconds.compute)


def test_a_ring_moves_twice_the_bytes_but_for_one_share() -> None:
    found = setting("H100")
    assert all_reduce(1e9, 1, found) == 0
    assert all_reduce(1e9, 8, found) == pytest.approx(2 * 7 / 8 * 1e9 / 450e9 + 14 * 20e-6)
    assert all_reduce(1e9, 16, found) == pytest.approx(2 * 15 / 16 * 1e9 / 50e9 + 30 * 20e-6)


def test_a_step_is_that_of_the_rank_with_most_rows() -> None:
    one, three, nine = (
        setting("H100", distill__workers={"count": count, "gpus": 1}) for count in (1, 3, 9)
    )
    first = distill_seconds(one).compute
    assert distill_seconds(three).compute == pytest.approx(first * 3 / 8)
    # A rank more than rows gains nothing.
    assert distill_seconds(nine).compute == pytest.approx(first / 8)


def test_measured_communication_is_in_the_measured_rates() -> None:
    two = setting("cpu", distill__workers={"count": 2}).with_measured(MEASURED)
    assert distill_seconds(two).communication == 0
    fast = MEASURED.model_copy(update={"training_flops": 1e15})
    many = setting("cpu", distill__workers={"count": 4}).with_measured(fast)
    assert distill_seconds(many).communication > 0


def test_a_training_is_steps_validations_checkpoints_and_start_up() -> None:
    found = setting("cpu", teacher__workers={"count": 1}).with_measured(MEASURED)
    training = found.config.teacher.training
    assert training is not None
    seconds = training_seconds(found.teacher, training, "teacher", found)
    step = 8 * 32 * found.teacher.training_flops(32) / 3e9
    assert seconds.compute == pytest.approx(10 * step)
    assert seconds.validation == pytest.approx(64 * 32 * found.teacher.forward_flops(32) / 3e9)
    assert seconds.start_up == 20
    state, model = (0.01 + each * found.teacher.parameters / 1e8 for each in (12, 4))
    assert seconds.store == pytest.approx(state + model + 1.2)
    assert seconds.total == pytest.approx(20 + 10 * step + seconds.validation + seconds.store)


def test_workers_that_go_on_with_the_next_stage_start_once() -> None:
    stages = ("teacher", "cache", "distill", "evaluate")

    def starts(**changes: Any) -> list[float]:
        found = setting(changes.pop("on", "cpu"), **changes).with_measured(MEASURED)
        return [seconds_of(stage, found).start_up for stage in stages]

    alike = {f"{name}__workers": {"count": 2} for name in ("teacher", "distill", "evaluate")}
    alike["cache__capture"] = {"workers": {"count": 2}}
    assert starts(**alike) == [20, 0, 0, 0]
    assert starts(**alike | {"distill__workers": {"count": 3}}) == [20, 0, 20, 20]
    assert starts(**alike, cache__reuse="s3://bucket/cache") == [20, 0, 0, 0]
    assert starts(on="H100", **alike) == [20] * 4


def test_the_baseline_doubles_the_students_work() -> None:
    both, alone = setting(), setting(distill__baseline=False)
    assert distill_seconds(both).compute == pytest.approx(2 * distill_seconds(alone).compute)


def test_a_online_teacher_adds_its_forward_to_the_students_steps_alone() -> None:
    online, cached = setting(distill__targets="online"), setting()
    more = distill_seconds(online).compute - distill_seconds(cached).compute
    assert more == pytest.approx(online_forward_seconds(online)[0])
    rows = 8 // 2 * 20  # of a rank, in all steps
    flops = rows * 32 * online.teacher.forward_flops(32)
    assert online_forward_seconds(online) == (pytest.approx(flops / (0.40 * 989e12)), 0.0)


def test_a_sharded_online_teacher_is_gathered_in_every_micro_batch() -> None:
    sharded = {"distill__targets": "online", "distill__online": {"teacher_sharding": "zero3"}}
    found = setting("A10G", **sharded)
    compute, exposed = online_forward_seconds(found)
    gathered = 0.5 * all_reduce(2 * found.teacher.parameters, 2, found)
    training = found.config.distill.training
    forwards = training.steps * math.ceil(8 / 2 / training.micro_batch_size)
    assert exposed == pytest.approx(forwards * gathered - compute)
    assert exposed > 0
    whole = setting("A10G", distill__targets="online")
    more = distill_seconds(found).communication - distill_seconds(whole).communication
    assert more == pytest.approx(exposed)
    # Of a run with a cache, the teacher of the capture is the one that it would take.
    cached = setting("A10G")
    assert online_forward_seconds(cached)[1] == pytest.approx(exposed)
    even = break_even(cached)
    assert even is not None
    hours = 2 * (compute + exposed) / 3600 / even.passes_of_this_run
    assert even.online_device_hours_a_pass == pytest.approx(hours)


def test_what_is_there_already_takes_no_time() -> None:
    assert seconds_of("cache", setting(cache__reuse="s3://bucket/cache")).total == 0
    assert evaluate_seconds(setting()).compute > 0
    assert seconds_of("prepare", setting()).total > 8


def test_break_even_is_capture_over_a_online_pass() -> None:
    found = setting("H100", cache__capture={"workers": {"count": 1, "gpus": 1}})
    even = break_even(found)
    assert even is not None
    assert even.passes == even.capture_device_hours / even.online_device_hours_a_pass
    saved = even.passes_of_this_run * even.online_device_hours_a_pass - even.capture_device_hours
    assert even.online_saved_device_hours == pytest.approx(saved)
    assert break_even(setting(cache__reuse="s3://bucket/cache")) is None


def test_the_stores_money() -> None:
    asked = Requests(puts=1000, heads=1000, lists=1000, gets=9000, written_bytes=0, read_bytes=0)
    money = store_money(asked, setting())
    assert money.requests == pytest.approx(2 * 0.005 + 10 * 0.0004)


def test_scaling_falls_off_where_ranks_have_no_rows_or_units() -> None:
    rows = {row.devices: row for row in scaling(setting("H100"))}
    assert list(rows) == [1, 8, 64, 256, 1024]
    assert rows[1].capture_efficiency == rows[1].distill_efficiency == 1
    # 40 units and 8 rows a step: most of 1,024 ranks idle.
    assert rows[1024].capture_efficiency <= 40 / 1024
    assert rows[1024].distill_efficiency <= 8 / 1024


def test_a_cores_worth_of_workers_is_all_a_cpu_has() -> None:
    cores = find_hardware("cpu").devices_per_node
    found = setting("cpu", cache__capture={"workers": {"count": 2 * cores}})
    workers = found.config.cache.capture.workers
    assert rate(found, workers, training=False) == pytest.approx(96e9 * 0.50 / 2)
