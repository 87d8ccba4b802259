"""Checks of a run before its first write."""

from kdscale.config import RunConfig
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import read_marker
from kdscale.preflight import Findings, preflight
from kdscale.preflight.caches import differing_fields
from kdscale.run.artifacts import RunArtifacts, resolve_paths
from kdscale.run.record import RunRecord
from kdscale.run.stage_names import chosen_stages
from kdscale.run.stages import all_stages, find_stage
from kdscale.run.stages.base import Stage


def check_run(
    config: RunConfig,
    only: str | None = None,
    start: str | None = None,
    overwrite: bool = False,
    until: str | None = None,
) -> Findings:
    """Check all that the stages of `run_pipeline` will need, and start none of them.

    Raises:
        KdscaleError: One of them would refuse its input.
    """
    run = RunArtifacts(resolve_paths(config))
    chosen = choose_stages(only, start, until)
    # Look at the corpus and at other models, so that a missing one ends the run here.
    _ = run.prepare_fingerprint, run.compared
    if not overwrite:
        _refuse_foreign_models(run, chosen)
    pending = chosen if only and chosen[0].repeats_alone else _pending(run, chosen)
    if pending:
        refuse_incomplete_base(run, pending[0])
    return preflight(config, [stage.name for stage in pending])


def choose_stages(only: str | None, start: str | None, until: str | None) -> list[Stage]:
    """Return the stages that a command names; see `chosen_stages`."""
    return [find_stage(name) for name in chosen_stages(only, start, until)]


def _pending(run: RunArtifacts, chosen: list[Stage]) -> list[Stage]:
    """Return the stages from the first one that is not complete."""
    record = RunRecord(run.output, run.config.name, run.fingerprint)
    for number, stage in enumerate(chosen):
        try:
            complete = stage.is_complete(run, record)
        except KdscaleError:
            complete = False  # it needs one that is not complete
        if not complete:
            return chosen[number:]
    return []


def refuse_incomplete_base(run: RunArtifacts, stage: Stage) -> None:
    """Refuse a stage that is not complete, but should be in the run's base."""
    if run.config.base is None or not stage.comes_from_base:
        return
    lines = "".join(f"\n  {line}" for line in differing_fields(run))
    last = [each.name for each in all_stages() if each.comes_from_base][-1]
    raise KdscaleError(
        f"The run {run.source}, this one's base, has not completed its stage {stage.name!r} for "
        f"this config.{lines}",
        f"Run that one first, with --until {last}; data, teacher and cache of the two configs have "
        "to be the same.",
    )


def _refuse_foreign_models(run: RunArtifacts, stages: list[Stage]) -> None:
    """Refuse a finished model of another config that one of `stages` would replace."""
    for stage in stages:
        for name, fingerprint in stage.models(run).items():
            found = read_marker(run.output.child(name))
            if found is not None and found.fingerprint != fingerprint:
                raise KdscaleError(
                    f"{run.output}/{name} holds a {name} of another config.",
                    "Give this run another `output`, or replace the model with --overwrite.",
                )
