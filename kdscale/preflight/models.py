"""Teacher and student, built without memory for their weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.config.training import TrainingConfig
from kdscale.distill.layer_losses import choose_pairs
from kdscale.distill.student_init import check_student_tokenizer, loaded_config, plan_init
from kdscale.errors import KdscaleError
from kdscale.models.attention import check_supported
from kdscale.models.init.plan import InitPlan, absent_tensors
from kdscale.models.load import build_model, count_parameters, load_config_of
from kdscale.models.modes import checkpoint_activations, set_dropout
from kdscale.models.positions import position_notes
from kdscale.models.stored_tensors import check_weights
from kdscale.models.tasks import TaskSpec, longest_input
from kdscale.preflight.context import Context, KnownData
from kdscale.preflight.lora import check_lora
from kdscale.preflight.small_model import Probe
from kdscale.teacher.pretrained import teacher_config
from kdscale.train.state import parameter_groups

# Vocabulary of a tokenizer that is out of reach.
_SOME_IDS = 32_000


def check_models(context: Context) -> None:
    """Refuse a teacher or student that cannot be made or trained, or does not fit the run."""
    config, data = context.config, context.data or KnownData(_SOME_IDS)
    shape = _existing(context)
    if config.teacher.model is not None or shape is not None:
        if context.data is None and shape is not None:
            data = KnownData(shape.get_text_config().vocab_size, data.classes)
        with context.findings.check("the teacher, built without weights"), _building("teacher"):
            _check_vocabulary_option(context, data, "teacher")
            context.teacher = teacher_config(config, data, shape)
            _check_teacher(context)
        if context.teacher_weights is not None:
            with context.findings.check("the teacher's files, by their headers"):
                further = config.teacher.training is not None
                revision = config.teacher.revision
                check_weights(
                    context.teacher_weights, revision, context.teacher, trained_further=further
                )
    if not context.makes("distill"):
        return
    student = config.distill.student
    if student.takes_from_teacher and context.teacher is None:
        return
    if student.load is not None and context.student_source is None:
        return
    if config.aligns:
        data = context.student_data or KnownData(_SOME_IDS)
    with context.findings.check("the student, built without weights"), _building("student"):
        _check_vocabulary_option(context, data, "student")
        if student.load is not None:
            context.student = _plan_loaded(context, data)
        else:
            context.student = plan_init(config, data, context.teacher)
        _check_student(context)
        # The files of a teacher that is trained here are written by then.
        is_written = student.takes_from_teacher and config.teacher.training is None
        if is_written and context.teacher_weights is not None:
            context.student.check_sources(context.teacher_weights, config.teacher.revision)


def _plan_loaded(context: Context, data: KnownData) -> InitPlan:
    """Plan a student that loads a model; refuse bad files, and another tokenizer than the run's."""
    config, student, source = context.config, context.config.distill.student, context.student_source
    assert source is not None
    tokenizer = None if context.data is None else context.data.tokenizer
    if tokenizer is not None and not config.aligns:
        check_student_tokenizer(config, source, tokenizer, context.findings.note)
    found = load_config_of(source, student.revision)
    if not data.is_exact:
        # The stage itself compares with the tokenizer that is made.
        data = replace(data, vocab_size=min(data.vocab_size, found.get_text_config().vocab_size))
    shape, weights = loaded_config(config, data, found), context.student_weights
    absent: list[str] = []
    if weights is not None:
        check_weights(weights, student.revision, shape, trained_further=True)
        absent = absent_tensors(weights, student.revision, shape)
    plan = plan_init(config, data, shape, absent)
    if weights is not None:
        plan.check_sources(weights, student.revision)
    return plan


def _existing(context: Context) -> Any | None:
    """Return the transformers config of a teacher that exists, if it can be reached."""
    instead = context.options.teacher_shape is not None
    if context.teacher_source is None:
        return None
    return load_config_of(
        context.teacher_source, None if instead else context.config.teacher.revision
    )


@contextmanager
def _building(what: str) -> Iterator[None]:
    """Name the model in transformers' errors, such as a division by zero."""
    try:
        yield
    except KdscaleError:
        raise
    except Exception as error:
        raise KdscaleError(
            f"transformers cannot build the {what}: {type(error).__name__}: {error}",
            f"Correct the `options` of the {what}'s model, which contradict each other or are out "
            "of range.",
        ) from error


def _check_vocabulary_option(context: Context, data: KnownData, what: str) -> None:
    """Refuse or note a vocabulary option, as the tokenizer decides it."""
    teacher, student = context.config.teacher.model, context.config.distill.student.model
    model, field = (
        (teacher, "teacher.model") if what == "teacher" else (student, "distill.student.model")
    )
    given = model.options.get("vocab_size") if model is not None else None
    if given is None:
        return
    known = context.student_data if what == "student" and context.config.aligns else context.data
    if isinstance(given, int) and given < data.vocab_size and known is not None:
        at_most = "" if data.is_exact else "up to "
        raise KdscaleError(
            f"{field}.options.vocab_size is {given:,}, and the tokenizer has {at_most}"
            f"{data.vocab_size:,} ids.",
            "Leave it out: the vocabulary comes from the tokenizer.",
        )
    context.findings.note(
        f"{field}.options.vocab_size {given} is no choice of the model: the vocabulary is the "
        f"tokenizer's, of which further ids are padding. Leave it out, or set "
        f"{field}.pad_vocab_to_multiple_of."
    )


def _check_teacher(context: Context) -> None:
    config = context.config
    model = _meta(context.teacher)
    _note_positions(context, context.teacher, "teacher")
    training = config.teacher.training
    if training is not None and context.makes("teacher"):
        _check_trainable(model, training, "teacher.training")
    check_supported(model, config.teacher.attention)
    if context.makes("cache", "teacher"):
        length = config.data.seq_len
        Probe(context.teacher, "teacher").check(packs=config.packs, seq_len=length)


def _check_student(context: Context) -> None:
    config, plan = context.config, context.student
    assert plan is not None
    model = _meta(plan.config)
    _check_trainable(model, config.distill.training, "distill.training")
    check_supported(model, config.distill.student.attention)
    probe = Probe(model.config, "student")
    online = config.distill.online
    length = config.student_seq_len
    probe.check(packs=config.packs, seq_len=length, attention=online.attention is not None)
    check_lora(context, model, probe)
    if context.teacher is None:
        return
    if online.attention is not None:
        Probe(context.teacher, "teacher").check(packs=False, seq_len=length, attention=True)
    shapes = (plan.config.get_text_config(), context.teacher.get_text_config())
    depths = shapes[0].num_hidden_layers, shapes[1].num_hidden_layers
    for name in ("hidden", "attention"):
        loss = getattr(online, name)
        if loss is not None:
            choose_pairs(loss.layers, depths, f"distill.online.{name}.layers")
    _note_positions(context, plan.config, "student")
    own, theirs = count_parameters(_meta(plan.config)), count_parameters(_meta(context.teacher))
    if own > theirs:
        context.findings.note(
            f"The student has {own:,} parameters, more than its teacher's {theirs:,}."
        )


def _note_positions(context: Context, shape: Any, what: str) -> None:
    config = context.config
    task_spec = TaskSpec(config.task, (), config.data.chunks)
    length = config.student_seq_len if what == "student" else config.data.seq_len
    for note in position_notes(shape, longest_input(task_spec, length), what):
        context.findings.note(note)


def _check_trainable(model: PreTrainedModel, training: TrainingConfig, field: str) -> None:
    """Refuse a dropout, a recomputation or an optimiser that cannot be set."""
    if training.dropout is not None:
        set_dropout(model, training.dropout)
    if training.activation_checkpointing:
        checkpoint_activations(model)
    optimiser = training.optimiser
    try:
        torch.optim.AdamW(
            parameter_groups(model, optimiser.weight_decay),
            lr=optimiser.learning_rate,
            betas=optimiser.betas,
        )
    except (TypeError, ValueError) as error:
        raise KdscaleError(
            f"{field}.optimiser cannot be made: {error}.", "Correct the value named."
        ) from error


def _meta(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return build_model(copy.deepcopy(config), seed=0)
