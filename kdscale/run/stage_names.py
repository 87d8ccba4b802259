"""The names of a run's stages, in order. A module of their own, so that `--help` needs no torch."""

STAGES: tuple[str, ...] = ("prepare", "teacher", "cache", "distill", "evaluate", "report")


def chosen_stages(
    only: str | None = None, start: str | None = None, until: str | None = None
) -> tuple[str, ...]:
    """`only` one stage, or those from `start` up to `until`. ValueError for an unknown name."""
    if only is not None:
        return (STAGES[STAGES.index(only)],)
    first = 0 if start is None else STAGES.index(start)
    last = len(STAGES) if until is None else STAGES.index(until) + 1
    return STAGES[first:last]
