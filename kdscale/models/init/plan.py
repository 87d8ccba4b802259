"""Plan of a student's first weights from configs alone, and the student built by it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.config.student import StudentConfig
from kdscale.errors import KdscaleError
from kdscale.models.init.families import family_of
from kdscale.models.init.layers import check_cut, choose_layers, keep_layers
from kdscale.models.init.sources import (
    Provenance,
    Source,
    all_sources,
    embedding_sources,
    trace,
    with_axes,
)
from kdscale.models.init.width import (
    Kept,
    Sizes,
    WidthStatistics,
    choose,
    narrow_config,
    narrow_sizes,
)
from kdscale.models.load import build_model, check_vocabulary, make_config
from kdscale.models.meta_model import MetaModel
from kdscale.models.positions import check_positions
from kdscale.models.stored_tensors import StoredTensors
from kdscale.models.tasks import CAUSAL_LM, TaskSpec, longest_input


@dataclass(frozen=True)
class InitPlan:
    """Plan of a student's first weights. Tensors that `sources` does not name start at random."""

    config: Any  # of transformers
    sources: dict[str, Source]  # by the student's tensor
    provenance: Provenance
    layers: list[int]  # of the teacher
    narrowing: tuple[Sizes, Sizes] | None  # (student's, teacher's)

    def keep(self, statistics: WidthStatistics) -> Kept:
        """Return the dimensions of the teacher that a narrower student keeps."""
        assert self.narrowing is not None
        return choose(*self.narrowing, self.layers, statistics)

    def check_sources(self, source: str, revision: str | None, teacher: Any) -> None:
        """Raise KdscaleError where the teacher's files at `source` cannot give its tensors.

        `teacher` is its transformers config. Reads headers only, and where the files are in a local
        folder also two tensors that the config takes for one.
        """
        names = [each.tensor for each in self.sources.values()]
        if names:
            StoredTensors.open(source, teacher, revision).check(names)


def plan_student(
    student: StudentConfig,
    teacher: Any | None,
    *,
    vocab_size: int,
    special_ids: Mapping[str, int | None],
    seq_len: int,
    task_spec: TaskSpec = CAUSAL_LM,
) -> InitPlan:
    """Return the plan of `student` for a task, over a tokenizer of `vocab_size` ids.

    `teacher` is its transformers config; only a student that takes something from it needs one.
    Raises KdscaleError for layers or sizes that the teacher cannot give, for an embedding that does
    not fit, and for an architecture that cannot be tied, or untied, as asked.
    """
    theirs = MetaModel(teacher) if student.takes_from_teacher else None
    layers: list[int] = []
    config: Any
    narrowing = None
    if student.teacher_layers is None:
        assert student.model is not None
        config = make_config(student.model, vocab_size, special_ids, seq_len, task_spec)
    else:
        config = copy.deepcopy(teacher)
        text = config.get_text_config()
        layers = choose_layers(student.teacher_layers, text.num_hidden_layers)
        keep_layers(text, layers)
        check_cut(text, layers)
        check_positions(config, longest_input(task_spec, seq_len), "student")
    if student.tie_embeddings is not None:
        config.tie_word_embeddings = student.tie_embeddings
    check_vocabulary(config, vocab_size, "student")
    mine = MetaModel(config)
    _check_tied(mine, student.tie_embeddings)
    sources: dict[str, Source] = {}
    if theirs is not None:
        sources = all_sources(mine, theirs, layers) if layers else embedding_sources(mine, theirs)
    if theirs is not None and student.width is not None:
        text = config.get_text_config()
        narrowing = (narrow_sizes(text, student.width), Sizes.of(text))
        narrow_config(text, narrowing[0])
        sources = with_axes(sources, theirs, narrowing[1], family_of(teacher))
        mine = MetaModel(config)
    return InitPlan(config, sources, trace(mine, theirs, sources), layers, narrowing)


def build_student(
    plan: InitPlan, teacher: StoredTensors | None, kept: Kept | None, seed: int
) -> PreTrainedModel:
    """Build the student of `plan` in float32, the same for the same seed on every rank.

    `teacher` has its weights, `kept` the dimensions that a narrower student keeps; None where they
    are not needed. Works on whole models and, collectively, on ones that ZeRO-3 partitions as they
    are built. Raises KdscaleError for files that lack tensors or hold quantised ones.
    """
    model = build_model(copy.deepcopy(plan.config), seed)
    if not plan.sources:
        return model
    assert teacher is not None
    teacher.check([source.tensor for source in plan.sources.values()])
    targets = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, source in plan.sources.items():
        tensor = teacher.read(source.tensor)
        if source.axes:
            assert kept is not None
            tensor = kept.cut(tensor, source.axes, source.layer)
        _write(targets[name], tensor)
    return model


def _write(target: Any, tensor: torch.Tensor) -> None:
    """Set a parameter or buffer.

    Embeddings may be padded to another number of rows than the teacher's: those that both have are
    set.
    """
    sharded = hasattr(target, "ds_tensor")
    if sharded:
        target.all_gather()
    if target.dim():
        rows = min(len(target), len(tensor))
        target.data[:rows].copy_(tensor[:rows])
    else:
        target.data.copy_(tensor)
    if sharded:
        target.partition(has_been_updated=True)


def _check_tied(student: MetaModel, wanted: bool | None) -> None:
    if wanted is not None and student.tied != wanted:
        have = "shared" if student.tied else "separate"
        raise KdscaleError(
            f"tie_embeddings is {str(wanted).lower()}, but a {student.kind} keeps embedding and "
            f"head {have}.",
            "Leave out tie_embeddings, or choose another architecture.",
        )
