"""In what two configs of runs differ that are to share rows, teacher and cache."""

import json
from collections.abc import Iterator
from typing import Any

from kdscale.errors import KdscaleError
from kdscale.run.artifacts import OPERATIONAL, RunArtifacts
from kdscale.run.finished_run import FinishedRun

_SHARED = ("task", "seed", "data", "teacher", "cache")


def differing_fields(run: RunArtifacts) -> list[str]:
    """A line for each field of data, teacher and cache in which the run differs from the config
    that its base was started with; none where that is not there."""
    try:
        base = FinishedRun(run.source).config
    except KdscaleError:
        return []
    theirs, mine = base.model_dump(mode="json"), run.config.model_dump(mode="json")
    return [
        f"{field}: the base has {json.dumps(have)}, this run {json.dumps(want)}"
        for field, have, want in _differing(
            {name: theirs[name] for name in _SHARED}, {name: mine[name] for name in _SHARED}
        )
    ]


def _differing(theirs: Any, mine: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if not (isinstance(theirs, dict) and isinstance(mine, dict)):
        if theirs != mine:
            yield name, theirs, mine
        return
    for key in {**theirs, **mine}:
        if key not in OPERATIONAL:
            field = f"{name}.{key}" if name else str(key)
            yield from _differing(theirs.get(key), mine.get(key), field)
