"""Names of a run's stages, in order; apart from the stages, so that `--help` needs no torch."""

STAGES: tuple[str, ...] = ("prepare", "teacher", "cache", "distill", "evaluate", "report")

ON_WORKERS = tuple(name for name in STAGES if name not in ("prepare", "report"))
"""The stages that run on worker groups."""

TRACKED = ("teacher", "cache", "distill", "baseline")
"""Names of the curves in `metrics/`: of the stages that log any, and of the baseline."""


def chosen_stages(
    only: str | None = None, start: str | None = None, until: str | None = None
) -> tuple[str, ...]:
    """Return `only` one stage, or those from `start` to `until`.

    Raises:
        ValueError: There is no such stage.
    """
    if only is not None:
        return (STAGES[STAGES.index(only)],)
    first = 0 if start is None else STAGES.index(start)
    last = len(STAGES) if until is None else STAGES.index(until) + 1
    return STAGES[first:last]
