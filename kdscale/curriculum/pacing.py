"""How much of the data, sorted by difficulty, is in the pool at a step.

With c0 the share at the start and s = step / T the share of the warm-up that is over:

    linear  c0 + (1 - c0) s
    root    (c0^p + (1 - c0^p) s)^(1/p)      Platanios et al., NAACL 2019, for p = 2
    step    c0 + (1 - c0) floor(s n) / n     n equal stages (Wu et al., ICLR 2021)

From T on the pool holds everything.
"""

from kdscale.config.curriculum import CurriculumConfig


def warmup_steps(config: CurriculumConfig, steps: int) -> int:
    """T: the first step (counted from 0) at which all rows are in the pool."""
    return round(config.warmup_share * steps)


def competence(config: CurriculumConfig, step: int, steps: int) -> float:
    """Share of the rows in the pool at `step` of `steps`, in (0, 1]."""
    total = warmup_steps(config, steps)
    if step >= total:
        return 1.0
    done, start = step / total, config.start_share
    if config.pacing == "linear":
        return start + (1 - start) * done
    if config.pacing == "root":
        power = config.root
        return float((start**power + (1 - start**power) * done) ** (1 / power))
    # Integers, because done * stages may fall just short of a whole number.
    stage = step * config.pacing_steps // total
    return start + (1 - start) * stage / config.pacing_steps
