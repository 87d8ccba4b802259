"""Config of the curriculum and of the schedules that run on its clock."""

from typing import Literal

from pydantic import Field, model_validator

from kdscale.config.base import Config


class Schedule(Config):
    """A number that changes over training."""

    kind: Literal["constant", "linear", "cosine", "inverse"] = "constant"
    """`inverse` is end + (start - end) / t for t = 1, 2, 3, ...: with start 1 and end 0 the
    article's 1/t, with start 0 and end 1 its 1 - 1/t."""

    start: float
    """Value at the first step."""

    end: float | None = None
    """Value at the last step (`linear`, `cosine`), or in the limit (`inverse`)."""

    period: int = Field(default=1, gt=0)
    """Steps for which t stays the same (`inverse`)."""

    @model_validator(mode="after")
    def _end_where_needed(self) -> "Schedule":
        if (self.end is None) != (self.kind == "constant"):
            raise ValueError(f"schedule {self.kind!r}: `end` belongs to every kind but `constant`")
        return self


class CurriculumConfig(Config):
    """In which order the rows are met."""

    difficulty: Literal["entropy", "nll", "length"] = "entropy"
    """`entropy`: mean entropy of the teacher over the row; `nll`: the teacher's mean negative
    log-likelihood of the labels; `length`: target tokens in the row."""

    order: Literal["easy", "hard", "random"] = "easy"
    """Which rows come first. `random` keeps the pacing and ignores the difficulty: the control that
    Wu et al. (ICLR 2021) ask for."""

    pacing: Literal["linear", "root", "step"] = "root"
    """How the share of rows in the pool grows from `start_share` to 1."""

    root: float = Field(default=2.0, gt=0)
    """p of the root pacing: 2 is the competence of Platanios et al. (2019)."""

    pacing_steps: int = Field(default=3, ge=1)
    """Number of equal stages of the step pacing."""

    start_share: float = Field(default=0.25, gt=0, le=1)
    """Share of the rows in the pool at the first step."""

    warmup_share: float = Field(default=0.25, ge=0, le=1)
    """Share of the steps after which all rows are in the pool and sampling is uniform. 0 turns the
    curriculum off."""

    shuffle_rows: int = Field(default=65536, gt=0)
    """A cache of more rows is shuffled block by block, and row by row within windows of so many
    rows: every block is then fetched once an epoch. What the windows hold should fit on the
    machine's disk (distill.cache_disk_gib)."""
