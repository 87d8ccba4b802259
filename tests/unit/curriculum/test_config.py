"""Configs of curriculum and schedules: what is refused, and with which words."""

import pytest
from pydantic import ValidationError

from kdscale.config.curriculum import (
    CurriculumConfig,
    FusionConfig,
    LengthConfig,
    Schedule,
)
from kdscale.curriculum.pacing import competence
from kdscale.curriculum.schedule import value_at


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "linear", "start": 1}, "`end` belongs to every kind but `constant` and `stages`"),
        ({"kind": "constant", "start": 1, "end": 0}, "`end` belongs to every kind but `constant`"),
        ({"kind": "stages", "values": [1], "end": 0}, "`end` belongs to every kind"),
        ({"kind": "constant"}, "`start` belongs to every kind but `stages`"),
        ({"kind": "stages", "values": [1], "start": 0}, "`start` belongs to every kind"),
        ({"kind": "stages"}, "`values` belongs to `stages`, which needs it"),
        ({"start": 1, "values": [1, 2]}, "`values` belongs to `stages`"),
        ({"kind": "stages", "values": []}, "at least 1 item"),
        ({"start": 1, "until": 0.5}, "`until` belongs to `linear` and `cosine`"),
        ({"kind": "linear", "start": 1, "end": 0, "until": 0}, "greater than 0"),
        ({"kind": "linear", "start": 1, "end": 0, "period": 2}, "`period` belongs to `inverse`"),
        ({"start": 1, "shares": [1]}, "'constant': `shares` belongs to `stages`"),
        ({"kind": "stages", "values": [1, 2], "shares": [1]}, "1 `shares` for 2 `values`"),
        ({"kind": "stages", "values": [1, 2], "shares": [0.5, 0.6]}, "0.5, 0.6 sum to 1.1, not"),
        ({"kind": "stages", "values": [1, 2], "shares": [0, 1]}, "greater than 0"),
    ],
)
def test_a_schedule_has_the_fields_of_its_kind(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Schedule.model_validate(fields)


def test_corners_bound_a_schedule() -> None:
    assert Schedule(start=0.5).corners == (0.5,)
    assert Schedule(kind="inverse", start=1, end=0).corners == (1, 0)
    assert Schedule(kind="stages", values=(3, 9, 4)).corners == (3, 9, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": 0}, "greater than or equal to 1"),
        ({"stages": []}, "at least 1 item"),
        ({"stages": [0.5, 0.4]}, "the shares 0.5, 0.4 sum to 0.9, not to 1"),
        ({"stages": [1.5, -0.5]}, "less than or equal to 1"),
        ({"start_share": 0}, "greater than 0"),
        ({"difficulty": "hardness"}, "'entropy', 'nll', 'length', 'rarity' or 'gap'"),
        ({"difficulty": {"kind": "fusion", "of": ["nll"]}}, "at least 2 items"),
        ({"difficulty": {"kind": "fusion", "of": ["nll", "nll"]}}, "twice: nll, nll"),
        ({"difficulty": {"kind": "fusion", "of": ["nll", "gap"], "k": 0}}, "greater than 0"),
        ({"pacing": "sudden"}, "'baby_step'"),
    ],
)
def test_a_curriculum_is_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CurriculumConfig.model_validate({"warmup_share": 0.5, **fields})


def test_shares_may_miss_one_by_what_floats_lose() -> None:
    assert CurriculumConfig(stages=(0.1, 0.2, 0.3, 0.4), warmup_share=1).stages == (
        0.1,
        0.2,
        0.3,
        0.4,
    )
    thirds = (0.3333333, 0.3333333, 0.3333334)
    assert CurriculumConfig(stages=thirds, warmup_share=1).stages == thirds


def test_difficulties_are_a_name_or_a_fusion() -> None:
    assert CurriculumConfig(difficulty="rarity", warmup_share=0.5).difficulty == "rarity"
    tree = {"difficulty": {"kind": "fusion", "of": ["nll", "length"]}, "warmup_share": 0.5}
    config = CurriculumConfig.model_validate(tree)
    assert config.difficulty == FusionConfig(kind="fusion", of=("nll", "length"), k=60)
    assert CurriculumConfig.model_validate(config.model_dump(mode="json")) == config


def test_an_order_needs_to_be_told_for_how_long() -> None:
    with pytest.raises(ValidationError, match="`difficulty`, `order` without `warmup_share`"):
        CurriculumConfig(difficulty="nll", order="hard")
    assert CurriculumConfig(order="hard", warmup_share=0).warmup_share == 0
    resolved = CurriculumConfig().model_dump(mode="json")
    assert CurriculumConfig.model_validate(resolved) == CurriculumConfig()


def test_the_default_is_whole_rows_in_uniform_order() -> None:
    config = CurriculumConfig()
    assert (config.difficulty, config.order, config.pacing) == ("entropy", "easy", "root")
    assert (config.warmup_share, config.length) == (0.0, None)


def test_rows_are_never_cut_to_less_than_a_multiple() -> None:
    short = Schedule(kind="linear", start=4, end=512)
    with pytest.raises(ValidationError, match="4 positions are fewer than `multiple` 8"):
        LengthConfig(positions=short)
    assert LengthConfig(positions=short, multiple=4).multiple == 4


def test_a_recipe_of_several_stages_runs_on_one_clock() -> None:
    """POCL: 25, 50, 75 and 100 % of the rows, as many epochs of each."""
    shares = [0.1, 0.2, 0.3, 0.4]
    curriculum = CurriculumConfig.model_validate(
        {
            "difficulty": {"kind": "fusion", "of": ["nll", "entropy"], "k": 60},
            "pacing": "baby_step",
            "stages": shares,
            "warmup_share": 1.0,
        }
    )
    stages = {"kind": "stages", "shares": shares}
    temperature = Schedule.model_validate(stages | {"values": [1, 1.33, 1.67, 2]})
    kd_weight = Schedule.model_validate(stages | {"values": [0.7, 0.8, 0.9, 1]})
    for steps in (10, 97, 1000):
        met = [
            (
                competence(curriculum, step, steps),
                value_at(temperature, step, steps),
                value_at(kd_weight, step, steps),
            )
            for step in range(steps)
        ]
        expected = [(0.25, 1, 0.7), (0.5, 1.33, 0.8), (0.75, 1.67, 0.9), (1.0, 2, 1)]
        assert list(dict.fromkeys(met)) == expected
        for stage, share in zip(expected, shares, strict=True):
            assert abs(met.count(stage) - share * steps) < 1
