"""Names of a run's stages, in order; apart from the stages, so that `--help` needs no torch."""

from kdscale.errors import KdscaleError

STAGES: tuple[str, ...] = ("prepare", "teacher", "cache", "distill", "evaluate", "report")

ON_WORKERS = tuple(name for name in STAGES if name not in ("prepare", "report"))
"""The stages that run on worker groups."""

CURVES = {"teacher": ("teacher",), "cache": ("cache",), "distill": ("distill", "baseline")}
"""Names of the files in `metrics/`, by the stage that logs them."""


def chosen_stages(
    only: str | None = None, start: str | None = None, until: str | None = None
) -> tuple[str, ...]:
    """Return `only` one stage, or those from `start` to `until`.

    Raises:
        KdscaleError: There is no such stage.
    """
    for name in (only, start, until):
        if name is not None and name not in STAGES:
            raise KdscaleError(
                f"There is no stage {name!r}.", f"Choose one of {', '.join(STAGES)}."
            )
    if only is not None:
        return (STAGES[STAGES.index(only)],)
    first = 0 if start is None else STAGES.index(start)
    last = len(STAGES) if until is None else STAGES.index(until) + 1
    return STAGES[first:last]
