"""Stages of a run, one module each: name, fingerprint, whether it is complete, how it is made.

A new stage is a module here with a `STAGE`, and its name in the list of `run/stage_names.py`.
"""

from importlib import import_module

from kdscale.run.stage_names import STAGES
from kdscale.run.stages.base import Stage


def find_stage(name: str) -> Stage:
    """Return the stage of a name in `run/stage_names.py`."""
    found: Stage = import_module(f"{__name__}.{name}").STAGE
    return found


def all_stages() -> list[Stage]:
    """Return all stages in their order."""
    return [find_stage(name) for name in STAGES]
