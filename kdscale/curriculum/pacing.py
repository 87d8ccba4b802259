"""Pacing: the share of the data, sorted by difficulty, that is in the pool at a step.

With c0 the share at the start, s = step / T the share of the warm-up that is over and k, from 0,
the number of the stage, of n:

    linear     c0 + (1 - c0) s
    root       (c0^p + (1 - c0^p) s)^(1/p)   Platanios et al., NAACL 2019, for p = 2
    geometric  c0^(1 - s)                    Penha and Hauff, ECIR 2020
    step       c0 + (1 - c0) k / n           Wu et al., ICLR 2021
    baby_step  (k + 1) / n                   Spitkovsky et al., NAACL 2010; POCL, arXiv:2506.05695

From T on the pool holds everything; for `baby_step` from its last stage on.
"""

from kdscale.config.curriculum import CurriculumConfig
from kdscale.curriculum.difficulty import needs
from kdscale.curriculum.schedule import stage_of, stage_starts

_STAGED = ("step", "baby_step")


def warmup_steps(config: CurriculumConfig, steps: int) -> int:
    """Return T: the steps of the warm-up, of `steps`."""
    return round(config.warmup_share * steps)


def warmup_stages(config: CurriculumConfig, steps: int) -> list[int]:
    """Return the first step of each stage of the warm-up."""
    return stage_starts(config.stages, warmup_steps(config, steps))


def uniform_from(config: CurriculumConfig, steps: int) -> int:
    """Return the first step (counted from 0) at which everything is in the pool for good."""
    if config.pacing == "baby_step":
        return warmup_stages(config, steps)[-1]
    return warmup_steps(config, steps)


def competence(config: CurriculumConfig, step: int, steps: int) -> float:
    """Return the share of the sequences in the pool at `step` of `steps`, in (0, 1]."""
    if step >= uniform_from(config, steps):
        return 1.0
    done, start = step / warmup_steps(config, steps), config.start_share
    if config.pacing == "linear":
        return start + (1 - start) * done
    if config.pacing == "root":
        power = config.root
        return float((start**power + (1 - start**power) * done) ** (1 / power))
    if config.pacing == "geometric":
        return float(start ** (1 - done))
    starts = warmup_stages(config, steps)
    stage = stage_of(starts, step)
    if config.pacing == "step":
        return start + (1 - start) * stage / len(starts)
    return (stage + 1) / len(starts)


def pool_since(config: CurriculumConfig, step: int, steps: int) -> int:
    """Return the first step that shares the pool of `step`, a step of the warm-up.

    That of its stage, or `step` itself where the pool grows with every step.
    """
    if config.pacing not in _STAGED:
        return step
    starts = warmup_stages(config, steps)
    return starts[stage_of(starts, step)]


def table_steps(config: CurriculumConfig, steps: int) -> list[int]:
    """Return the steps before which a table of difficulties is due, in order; the first is 0.

    The student's gap is measured at every stage edge of the warm-up; the other measures never
    change. After the warm-up nothing is sorted any more.
    """
    if "gap" not in needs(config.difficulty):
        return [0]
    last = uniform_from(config, steps)
    return sorted({0, *(start for start in warmup_stages(config, steps) if start < last)})
