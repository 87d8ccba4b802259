"""The parts of a stage."""

from collections.abc import Callable
from dataclasses import dataclass

from kdscale.models.hf_folder import read_marker
from kdscale.preflight.caches import check_caches, other_caches
from kdscale.preflight.data import of_prepared
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.record import RunRecord
from kdscale.workers.group import WorkerGroups
from kdscale.workers.progress import RunningStage


@dataclass(frozen=True)
class StageContext:
    """All that a stage is made with."""

    run: RunArtifacts
    record: RunRecord
    groups: WorkerGroups
    progress: RunningStage


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: what names its output, whether that is complete, and how it is made."""

    name: str
    fingerprint: Callable[[RunArtifacts], str]
    """Returns the fingerprint of its config and its inputs."""

    is_complete: Callable[[RunArtifacts, RunRecord], bool]
    """Returns whether its output is there and has the fingerprint."""

    make: Callable[[StageContext], list[str]]
    """Makes its output, if that is not complete; returns lines for the terminal."""

    check: Callable[[RunArtifacts], None] = lambda run: None
    """Refuses, before `make`, what can be known only once the stages before are complete."""

    models: Callable[[RunArtifacts], dict[str, str]] = lambda run: {}
    """Returns the fingerprints of the models that it writes to the run's output, by name; empty if
    they cannot be known yet."""

    needs_ray: bool = True
    supports_graceful_stop: bool = True
    """It has a state to save when it is asked to stop."""

    comes_from_base: bool = False
    """A run with a base takes its output from there."""

    repeats_alone: bool = False
    """It runs again, though complete, if a user names it alone."""


def models_complete(run: RunArtifacts, models: dict[str, str]) -> bool:
    """Return whether all models, fingerprints by name, are complete."""
    return all(
        (found := read_marker(run.model_store(name))) is not None
        and found.fingerprint == fingerprint
        for name, fingerprint in models.items()
    )


def check_other_caches(run: RunArtifacts) -> None:
    """Refuse caches of other runs that do not fit, now that tokenizer and teacher are known."""
    if other_caches(run):
        check_caches(run, of_prepared(run.prepared))
