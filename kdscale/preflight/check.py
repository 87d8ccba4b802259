"""All checks of a run before it starts, in order.

Whatever a later stage would refuse is refused here: before the first worker starts, by the same
words from `kdscale run`, `submit` and `plan`. Nothing is written, no weights are read and no Ray is
started; facts that are not known yet (how many documents are left, the ids of a trained tokenizer,
whether weights are finite) are left to the stage that finds them out.
"""

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kdscale.cache.codecs import make_codec
from kdscale.config import RunConfig
from kdscale.config.loss import check_alignable, check_defined
from kdscale.curriculum.difficulty import needs
from kdscale.data.rows.classes import UNKNOWN_LABEL
from kdscale.errors import KdscaleError
from kdscale.evaluate.external_models import check_external_model, has_tokenizer
from kdscale.evaluate.speed import PROMPT_TOKENS
from kdscale.models.load import load_config_of
from kdscale.models.positions import usable_positions
from kdscale.models.stored_tensors import check_weights
from kdscale.preflight.caches import check_caches, other_caches
from kdscale.preflight.context import DEFAULTS, Context, Findings, PreflightOptions
from kdscale.preflight.data import check_text, known_data
from kdscale.preflight.ignored_fields import note_ignored
from kdscale.preflight.locate import is_out_of_reach, locate
from kdscale.preflight.models import check_models
from kdscale.preflight.own_tokenizer import check_own_tokenizer
from kdscale.preflight.row_counts import note_unread
from kdscale.run.artifacts import RunArtifacts, resolve_paths
from kdscale.run.stage_names import ON_WORKERS, STAGES
from kdscale.store import Store


def preflight(
    config: RunConfig, stages: Collection[str] = STAGES, options: PreflightOptions = DEFAULTS
) -> Findings:
    """Check everything that `stages` of `config` need; return what was checked, and notes.

    Raises KdscaleError for the first thing that one of the stages would refuse.
    """
    findings = Findings()
    wanted = frozenset(stages) - {"report"}
    if not wanted:
        return findings
    with tempfile.TemporaryDirectory(prefix="kdscale-preflight-") as scratch:
        run = RunArtifacts(resolve_paths(config))
        _check_all(Context(run, wanted, options, findings, Path(scratch)))
    return findings


def _check_all(context: Context) -> None:
    config, options = context.config, context.options
    note_ignored(config, context.findings)
    if config.teacher.is_absent:
        context.findings.note(
            "The run has no teacher: cache.reuse stands for it. The results will have no figures "
            "of it, no likeness to it and no gap recovered."
        )
    if options == DEFAULTS:
        store = context.run.prepared_store  # says where a corpus is missing
        context.prepared = context.run.prepared if store.exists("manifest.json") else None
    if context.makes("prepare") and context.prepared is None and options.tokens is None:
        check_text(context)
    if options.teacher_shape is not None:
        context.teacher_source = _folder(options.teacher_shape)
    elif config.teacher.load is not None:
        context.teacher_source = locate(context, "teacher.load", config.teacher.load)
    student = config.distill.student
    if student.load is not None and context.makes("distill", "evaluate"):
        context.student_source = locate(context, "distill.student.load", student.load)
    context.data = known_data(context)
    if config.aligns and context.makes("distill", "evaluate"):
        check_own_tokenizer(context)
    if context.makes(*ON_WORKERS):
        check_models(context)
    if context.makes("cache", "distill"):
        check_targets(context)
        _check_caches(context)
        note_unread(context)
    if context.makes("evaluate"):
        check_evaluation(context)


def _folder(shape: str) -> str:
    """Return the folder of a config.json that is given by its own path."""
    path = Path(shape).expanduser()
    return str(path.parent if path.is_file() else path)


def _check_caches(context: Context) -> None:
    caches = other_caches(context.run)
    if not caches:
        return
    try:
        with context.findings.check("the caches of other runs"):
            check_caches(context.run, context.data)
    except (KdscaleError, OSError) as error:
        absent = [each for each in caches if not _is_there(each[1], error)]
        if not context.options.runs_elsewhere or not absent:
            raise
        for field, store, _ in absent:
            context.findings.unseen(field, str(store))


def _is_there(store: Store, error: Exception) -> bool:
    """Tell whether a cache can be seen; of a remote one by the `error`."""
    folder = store.local_path()
    return folder.exists() if folder is not None else not is_out_of_reach(error)


def check_targets(context: Context) -> None:
    """Refuse targets that codec, loss, vocabulary or labels do not allow.

    The codec asks for more ids than there are, the loss is not defined on its targets, or the
    curriculum ranks by labels that are not known.
    """
    config, data = context.config, context.data
    if config.cache.reuse is None:
        with context.findings.check("codec against loss and vocabulary"):
            if data is not None:
                make_codec(config.cache.codec, data.outputs)
            if config.distill.targets == "cache":
                check_defined(config.distill.loss.divergence.kind, config.cache.codec.kind)
            if config.aligns:
                check_alignable(config.cache.codec.kind)
    if context.makes("distill"):
        _check_labels(context)


def _check_labels(context: Context) -> None:
    """Count the labels of prepared rows, where the curriculum needs them."""
    wanted = {"nll", "gap"} & set(needs(context.config.distill.curriculum.difficulty))
    if context.prepared is None or not wanted or context.config.data.labels is None:
        return
    table = context.prepared.training("cache")
    unlabelled = table.class_counts.get(UNKNOWN_LABEL, 0)
    if unlabelled:
        raise KdscaleError(
            f"{unlabelled:,} of {len(table):,} training rows have no label, and the difficulties "
            "`nll` and `gap` ask for every row's.",
            "Set distill.curriculum.difficulty to entropy, length or rarity.",
        )


def check_evaluation(context: Context) -> None:
    """Refuse text that a model cannot generate, and other models that cannot be compared."""
    config = context.config
    with context.findings.check("what evaluation writes and compares"):
        if config.task == "causal-lm":
            for what, shape in (
                ("teacher", context.teacher),
                ("student", None if context.student is None else context.student.config),
            ):
                if shape is not None:
                    _check_writing(context, what, shape)
        for name, source in config.evaluate.models.items():
            folder = locate(context, f"evaluate.models.{name}", source)
            if folder is not None:
                data, own = context.data, context.student_data
                if own is not None and own.tokenizer and has_tokenizer(folder, own.tokenizer):
                    data = own
                tokenizer = data.tokenizer if data is not None else None
                check_external_model(name, folder, config, data, tokenizer)
                weights = source if "://" in source else folder
                check_weights(weights, None, load_config_of(folder))


def _check_writing(context: Context, what: str, shape: Any) -> None:
    """Refuse a model with fewer positions than the longest text it is to generate."""
    config = context.config.evaluate
    length = context.config.student_seq_len if what == "student" else context.config.data.seq_len
    wanted = []
    if config.speed is not None:
        prompt = min(PROMPT_TOKENS, length)
        wanted.append((prompt, config.speed.new_tokens, "evaluate.speed"))
    if config.samples is not None:
        prompt = min(config.samples.prompt_tokens, length // 2)
        wanted.append((prompt, config.samples.new_tokens, "evaluate.samples"))
    positions = usable_positions(shape)
    for prompt, new, field in wanted:
        if positions is not None and prompt + new > positions:
            raise KdscaleError(
                f"The {what} has {positions} positions, and {field} lets it write {new} tokens "
                f"after {prompt}.",
                f"Set {field}.new_tokens to at most {max(0, positions - prompt)}, or {field} to "
                "null.",
            )
