"""The whole look at a run before it starts.

Whatever a later stage would refuse is refused here: before the first worker of the first stage,
by the same words from `kdscale run`, `submit` and `plan`. Nothing is written, no weights are read
and no Ray is started; what cannot be known yet (how many documents are left, what a trained
tokenizer has, whether weights are finite) is left to the stage that finds it out.
"""

import tempfile
from collections.abc import Collection
from pathlib import Path

from kdscale.config import RunConfig
from kdscale.errors import KdscaleError
from kdscale.preflight.caches import check_caches, other_caches
from kdscale.preflight.evaluation import check_evaluation
from kdscale.preflight.findings import Findings
from kdscale.preflight.locate import is_out_of_reach, locate
from kdscale.preflight.models import check_models
from kdscale.preflight.options import note_ignored
from kdscale.preflight.reading import note_unread
from kdscale.preflight.targets import check_targets
from kdscale.preflight.text import check_text
from kdscale.preflight.tokenizer import look_at_tokenizer
from kdscale.preflight.view import HERE, Sight, View
from kdscale.run.artifacts import RunArtifacts, resolve_paths
from kdscale.run.stage_names import ON_WORKERS, STAGES
from kdscale.store import Store


def preflight(config: RunConfig, stages: Collection[str] = STAGES, sight: Sight = HERE) -> Findings:
    """Look at all that `stages` of `config` need. Raises KdscaleError for the first thing that one
    of them would refuse; returns what was checked, and notes."""
    findings = Findings()
    wanted = frozenset(stages) - {"report"}
    if not wanted:
        return findings
    with tempfile.TemporaryDirectory(prefix="kdscale-preflight-") as scratch:
        run = RunArtifacts(resolve_paths(config))
        _look(View(run, wanted, sight, findings, Path(scratch)))
    return findings


def _look(view: View) -> None:
    config, sight = view.config, view.sight
    note_ignored(config, view.findings)
    if sight == HERE:
        store = view.run.prepared_store  # says where a corpus is missing
        view.prepared = view.run.prepared if store.exists("manifest.json") else None
    if view.makes("prepare") and view.prepared is None and sight.tokens is None:
        check_text(view)
    if sight.teacher_shape is not None:
        view.teacher_source = _folder(sight.teacher_shape)
    elif config.teacher.load is not None:
        view.teacher_source = locate(view, "teacher.load", config.teacher.load)
    view.data = look_at_tokenizer(view)
    if view.makes(*ON_WORKERS):
        check_models(view)
    if view.makes("cache", "distill"):
        check_targets(view)
        _check_caches(view)
        note_unread(view)
    if view.makes("evaluate"):
        check_evaluation(view)


def _folder(shape: str) -> str:
    """Of a config.json that is given itself, its folder."""
    path = Path(shape).expanduser()
    return str(path.parent if path.is_file() else path)


def _check_caches(view: View) -> None:
    caches = other_caches(view.run)
    if not caches:
        return
    try:
        with view.findings.check("the caches of other runs"):
            check_caches(view.run, view.data)
    except (KdscaleError, OSError) as error:
        absent = [each for each in caches if not _is_there(each[1], error)]
        if not view.sight.elsewhere or not absent:
            raise
        for field, store, _ in absent:
            view.findings.unseen(field, str(store))


def _is_there(store: Store, error: Exception) -> bool:
    """Whether a cache can be seen; of a remote one the `error` says it."""
    folder = store.local_path()
    return folder.exists() if folder is not None else not is_out_of_reach(error)
