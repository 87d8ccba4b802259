"""Plan of a student's first weights from configs alone, and the student built by it."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kdscale.config.student import StudentConfig
from kdscale.errors import KdscaleError
from kdscale.models.init.families import family_of
from kdscale.models.init.layers import (
    LOADED,
    TEACHER,
    Origin,
    check_cut,
    choose_layers,
    keep_layers,
)
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
    start: Any | None  # that of the model that it starts from; None if from none
    sources: dict[str, Source]  # by the student's tensor
    provenance: Provenance
    layers: list[int]  # of the model that it starts from
    narrowing: tuple[Sizes, Sizes] | None  # (student's, that model's)
    origin: Origin = TEACHER

    is_whole: bool = False
    """True if the student is the loaded model as it is."""

    def keep(self, statistics: WidthStatistics) -> Kept:
        """Return the dimensions of the model it starts from that a narrower student keeps."""
        assert self.narrowing is not None
        return choose(*self.narrowing, self.layers, statistics)

    def open_sources(self, source: str | Path, revision: str | None = None) -> StoredTensors:
        """Open the files at `source` of the model that the student starts from."""
        return StoredTensors.open(source, self.start, revision, self.origin.name)

    def check_sources(self, source: str, revision: str | None) -> None:
        """Raise KdscaleError where the files at `source` cannot give the tensors.

        Reads headers only, and where the files are in a local folder also two tensors that the
        config takes for one.
        """
        names = [each.tensor for each in self.sources.values()]
        if names:
            self.open_sources(source, revision).check(names)


def plan_student(
    student: StudentConfig,
    start: Any | None,
    *,
    vocab_size: int,
    special_ids: Mapping[str, int | None],
    seq_len: int,
    task_spec: TaskSpec = CAUSAL_LM,
    absent: Collection[str] = (),
) -> InitPlan:
    """Return the plan of `student` for a task, over a tokenizer of `vocab_size` ids.

    `start` is the transformers config of the teacher, or of the model in `load` as the task needs
    it (`fit_to_task`); only a student that takes something from one needs it. `absent` are the
    tensors that the files of a loaded model lack: they start at random. Raises KdscaleError for
    layers or sizes that the start cannot give, for an embedding that does not fit, and for an
    architecture that cannot be tied, or untied, as asked.
    """
    origin = TEACHER if student.load is None else LOADED
    theirs = None if student.load is None and not student.takes_from_teacher else MetaModel(start)
    config, layers = _shape(student, start, vocab_size, special_ids, seq_len, task_spec, origin)
    if student.tie_embeddings is not None:
        config.tie_word_embeddings = student.tie_embeddings
    check_vocabulary(config, vocab_size, "student")
    mine = MetaModel(config)
    _check_tied(mine, student.tie_embeddings)
    is_cut = bool(student.teacher_layers or student.layers or student.width)
    sources: dict[str, Source] = {}
    narrowing = None
    if theirs is not None:
        if student.model is not None:
            sources = embedding_sources(mine, theirs)
        else:
            sources = all_sources(mine, theirs, layers if is_cut else None, origin)
        sources = {name: each for name, each in sources.items() if each.tensor not in absent}
    if theirs is not None and student.width is not None:
        text = config.get_text_config()
        narrowing = (narrow_sizes(text, student.width, origin), Sizes.of(text))
        narrow_config(text, narrowing[0])
        family = family_of(start, origin.name)
        sources = with_axes(sources, theirs, narrowing[1], family, origin)
        mine = MetaModel(config)
    is_same = theirs is not None and theirs.tied == mine.tied
    return InitPlan(
        config=config,
        start=None if theirs is None else start,
        sources=sources,
        provenance=trace(mine, theirs, sources, origin),
        layers=layers,
        narrowing=narrowing,
        origin=origin,
        is_whole=student.load is not None and is_same and not is_cut,
    )


def _shape(
    student: StudentConfig,
    start: Any | None,
    vocab_size: int,
    special_ids: Mapping[str, int | None],
    seq_len: int,
    task_spec: TaskSpec,
    origin: Origin,
) -> tuple[Any, list[int]]:
    """Return the transformers config of a student that is not narrowed yet, and its layers.

    The layers are those of the model that it starts from; none of one that starts from `model`.
    """
    if student.model is not None:
        return make_config(student.model, vocab_size, special_ids, seq_len, task_spec), []
    config: Any = copy.deepcopy(start)
    text, choice = config.get_text_config(), student.teacher_layers or student.layers
    if choice is None:
        return config, list(range(text.num_hidden_layers))
    layers = choose_layers(choice, text.num_hidden_layers, origin)
    keep_layers(text, layers)
    check_cut(text, layers, origin)
    check_positions(config, longest_input(task_spec, seq_len), "student")
    return config, layers


def absent_tensors(source: str | Path, revision: str | None, start: Any) -> list[str]:
    """Return the tensors that the files of a loaded model lack: they start at random.

    `start` is its transformers config, as the task needs it. Raises KdscaleError where more is
    missing than a head for the task.
    """
    stored = StoredTensors.open(source, start, revision, LOADED.name)
    missing = stored.missing()
    meta = MetaModel(start) if missing else None
    body = [n for n in missing if meta and meta.group_of(n).startswith(("layer ", "embedding"))]
    if body:
        raise KdscaleError(
            f"The files of the loaded model lack {len(body)} tensors of its layers and embedding, "
            f"such as {min(body)!r}.",
            "Take config.json and *.safetensors from the same model, or save it once more with "
            "transformers' save_pretrained.",
        )
    return stored.absent()


def build_student(
    plan: InitPlan, tensors: StoredTensors | None, kept: Kept | None, seed: int
) -> PreTrainedModel:
    """Build the student of `plan` in float32, the same for the same seed on every rank.

    `tensors` are those of the model that it starts from, `kept` the dimensions that a narrower
    student keeps; None where they are not needed. Works on whole models and, collectively, on ones
    that ZeRO-3 partitions as they are built. Raises KdscaleError for files that lack tensors or
    hold quantised ones.
    """
    model = build_model(copy.deepcopy(plan.config), seed)
    if not plan.sources:
        return model
    assert tensors is not None
    tensors.check([source.tensor for source in plan.sources.values()])
    targets = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, source in plan.sources.items():
        tensor = tensors.read(source.tensor)
        if source.axes:
            assert kept is not None
            tensor = kept.cut(tensor, source.axes, source.layer)
        _write(targets[name], tensor)
    return model


def _write(target: Any, tensor: torch.Tensor) -> None:
    """Set a parameter or buffer.

    Embeddings may be padded to another number of rows than there: those that both have are set.
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
