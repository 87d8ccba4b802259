"""Config of the curriculum and of the schedules that run on its clock."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config

Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[tuple[Share, ...], Field(min_length=1)]


class Schedule(Config):
    """A number that changes over training; a plain number stays as it is."""

    kind: Literal["constant", "linear", "cosine", "inverse", "stages"] = "constant"
    """`inverse` is end + (start - end) / t for t = 1, 2, 3, ...: with start 1 and end 0 it
    is 1/t, with start 0 and end 1 it is 1 - 1/t. `stages` takes `values` one after the
    other."""

    start: float | None = None
    """Value at the first step (all kinds but `stages`)."""

    end: float | None = None
    """Value at the last step (`linear`, `cosine`), or in the limit (`inverse`)."""

    until: float = Field(default=1.0, gt=0, le=1)
    """Share of the run after which the value stays `end` (`linear`, `cosine`)."""

    period: int = Field(default=1, gt=0)
    """Steps for which t stays the same (`inverse`)."""

    values: tuple[float, ...] | None = Field(default=None, min_length=1)
    """The values of the stages (`stages`)."""

    shares: Shares | None = None
    """Share of the run that each of the stages takes (`stages`); equal where left out."""

    @model_validator(mode="before")
    @classmethod
    def _number_is_constant(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"start": value} if is_number else value

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> "Schedule":
        kind = self.kind
        if (self.end is None) != (kind in ("constant", "stages")):
            raise ValueError(
                f"schedule {kind!r}: `end` belongs to every kind but `constant` and `stages`"
            )
        if (self.start is None) != (kind == "stages"):
            raise ValueError(f"schedule {kind!r}: `start` belongs to every kind but `stages`")
        if (self.values is None) == (kind == "stages"):
            raise ValueError(f"schedule {kind!r}: `values` belongs to `stages`, which needs it")
        if self.until != 1 and kind not in ("linear", "cosine"):
            raise ValueError(f"schedule {kind!r}: `until` belongs to `linear` and `cosine`")
        if self.period != 1 and kind != "inverse":
            raise ValueError(f"schedule {kind!r}: `period` belongs to `inverse`")
        return self

    @model_validator(mode="after")
    def _a_share_for_each_value(self) -> "Schedule":
        if self.shares is None:
            return self
        if self.values is None:
            raise ValueError(f"schedule {self.kind!r}: `shares` belongs to `stages`")
        if len(self.shares) != len(self.values):
            raise ValueError(f"{len(self.shares)} `shares` for {len(self.values)} `values`")
        _check_sum(self.shares)
        return self

    @property
    def corners(self) -> tuple[float, ...]:
        """Values whose range the schedule never leaves."""
        if self.values is not None:
            return self.values
        return tuple(value for value in (self.start, self.end) if value is not None)


DifficultyName = Literal["entropy", "nll", "length", "rarity", "gap"]


class FusionConfig(Config):
    """Several difficulties as one, by reciprocal rank fusion."""

    kind: Literal["fusion"]

    of: Annotated[tuple[DifficultyName, ...], Field(min_length=2)]
    """The difficulties: entropy, nll, length, rarity, gap."""

    k: float = Field(default=60.0, gt=0)
    """A sequence gets 1 / (k + rank) from each, the easiest having rank 1. The larger k, the less
    the easiest sequences of one difficulty outweigh its others."""

    @model_validator(mode="after")
    def _each_once(self) -> "FusionConfig":
        if len(set(self.of)) != len(self.of):
            raise ValueError(f"`of` names a difficulty twice: {', '.join(self.of)}")
        return self


class LengthConfig(Config):
    """Sequences cut to their first positions."""

    positions: Schedule
    """Positions of a sequence that are trained on, for example {kind: linear, start: 64, end: 512,
    until: 0.3}; never more than a sequence has."""

    multiple: int = Field(default=8, ge=2)
    """Lengths are multiples of this (except for whole sequences), so that there are few of them."""

    @model_validator(mode="after")
    def _at_least_one_multiple(self) -> "LengthConfig":
        shortest = min(self.positions.corners)
        if shortest < self.multiple:
            raise ValueError(f"{shortest:g} positions are fewer than `multiple` {self.multiple}")
        return self


class CurriculumConfig(Config):
    """The order of the sequences."""

    difficulty: DifficultyName | FusionConfig = "entropy"
    """`entropy`: mean entropy of the teacher over the sequence; `nll`: the teacher's mean negative
    log-likelihood of the labels; `length`: target tokens in the sequence; `rarity`: mean -log of
    the target tokens' frequencies; `gap`: the student's nll less the teacher's, measured on all
    rows at every stage of the warm-up. Several as one: {kind: fusion, of: [nll, rarity]}."""

    order: Literal["easy", "hard", "random"] = "easy"
    """Sequences that come first. `random` keeps the pacing and ignores the difficulty: the
    baseline that Wu et al. (ICLR 2021) ask for."""

    pacing: Literal["linear", "root", "geometric", "step", "baby_step"] = "root"
    """Growth of the share of sequences in the pool from `start_share` to 1. `step` and `baby_step`
    run shuffled epochs over the pool of a stage; the last `baby_step` has all rows."""

    root: float = Field(default=2.0, gt=0)
    """p of the root pacing: 2 is the competence of Platanios et al. (2019)."""

    stages: Annotated[int, Field(ge=1)] | Shares = 3
    """Stages of the warm-up: how many equal ones, or the share of the warm-up that each takes, as
    [0.1, 0.2, 0.3, 0.4]. The pool grows at their edges (`step`, `baby_step`), and `gap` is measured
    there (every pacing)."""

    start_share: float = Field(default=0.25, gt=0, le=1)
    """Share of the rows in the pool at the first step. `baby_step` starts with one of its equal
    buckets instead."""

    warmup_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps after which all rows are in the pool and sampling is uniform. 0, the
    default, turns the curriculum off: no order was better than none (docs/results.md)."""

    length: LengthConfig | None = None
    """Sequences are cut early in training; left out, they are whole."""

    shuffle_sequences: int = Field(default=65536, gt=0)
    """A cache of more rows is shuffled chunk by chunk, and row by row within windows of so many
    rows: every chunk is then fetched once an epoch. What the windows hold should fit on the
    machine's disk (distill.cache_disk_gib)."""

    @model_validator(mode="after")
    def _asked_for_with_its_length(self) -> "CurriculumConfig":
        ordering = self.model_fields_set & {"difficulty", "order", "pacing", "stages"}
        # 0 by itself turns a curriculum off and may stand beside one.
        if ordering and "warmup_share" not in self.model_fields_set:
            names = ", ".join(f"`{name}`" for name in sorted(ordering))
            raise ValueError(
                f"{names} without `warmup_share`, which is 0: give it too, 0.25 for a quarter of "
                "the steps"
            )
        return self

    @model_validator(mode="after")
    def _stages_are_the_warmup(self) -> "CurriculumConfig":
        if not isinstance(self.stages, int):
            _check_sum(self.stages)
        return self


def _check_sum(shares: tuple[float, ...]) -> None:
    total = math.fsum(shares)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the shares {', '.join(map(str, shares))} sum to {total:g}, not to 1")
