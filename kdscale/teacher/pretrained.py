"""The transformers config of a run's teacher: made, trained further, or as it exists.

It needs no weights or sequences, so that it can be known, and refused, before anything starts.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdscale.cache.origin import tokenizer_folder
from kdscale.config import RunConfig
from kdscale.data.pretrained_tokenizer import load_tokenizer, require_embeddings
from kdscale.errors import KdscaleError
from kdscale.models.chunked_classifier import CHUNKS
from kdscale.models.hf_folder import loadable
from kdscale.models.load import check_vocabulary, fit_to_task, load_config_of, make_config
from kdscale.models.positions import check_positions
from kdscale.models.tasks import TaskSpec, describe_task, longest_input, task_of
from kdscale.store import open_store
from kdscale.types import DataFacts


def task_spec_of(config: RunConfig, data: DataFacts) -> TaskSpec:
    """Return the task of the models of a run."""
    return TaskSpec(config.task, data.classes, config.data.chunks)


def teacher_config(config: RunConfig, data: DataFacts, shape: Any | None = None) -> Any:
    """Return the transformers config of the run's teacher.

    `shape` stands in for the one in teacher.load. Raises KdscaleError where it cannot be had, or
    does not fit the run.
    """
    teacher = config.teacher
    if teacher.model is not None:
        length, ids = config.data.seq_len, data.special_ids
        return make_config(teacher.model, data.vocab_size, ids, length, task_spec_of(config, data))
    if teacher.training is not None:
        return config_to_train(config, data, shape)
    return check_teacher(config, data, shape)


def teacher_source(config: RunConfig, *, weights: bool = True) -> str:
    """Return what `from_pretrained` takes on this machine for the teacher that the config loads.

    Without `weights` only its config and tokenizer can be loaded from it.
    """
    source = config.teacher.load
    assert source is not None
    return loadable(source, weights=weights)


@contextmanager
def own_tokenizer(config: RunConfig) -> Iterator[Path | None]:
    """Inside, give a folder with the tokenizer of the teacher, or of the cache that stands for it.

    None where the run trains one. Raises KdscaleError where the teacher has none that transformers
    can load.
    """
    with tempfile.TemporaryDirectory(prefix="kdscale-tokenizer-") as scratch:
        if config.data.tokenizer.kind != "teacher":
            yield None
        elif config.teacher.is_absent:
            yield cached_tokenizer(config, Path(scratch))
        else:
            source = teacher_source(config, weights=False)
            yield save_tokenizer(config, source, Path(scratch))


def cached_tokenizer(config: RunConfig, folder: Path) -> Path:
    """Write the tokenizer that the reused cache keeps to the empty `folder`; return it.

    Raises KdscaleError where it keeps none.
    """
    reuse = config.cache.reuse
    assert reuse is not None
    store = open_store(reuse if isinstance(reuse, str) else reuse[0].url)
    found = tokenizer_folder(store, folder)
    if found is None:
        raise KdscaleError(
            f"The cache {store} keeps no tokenizer, and the run has no teacher to take it from.",
            "Give the teacher in teacher.load.",
        )
    return found


def save_tokenizer(config: RunConfig, source: str, folder: Path) -> Path:
    """Save the tokenizer of the teacher at `source` on this machine to `folder`; return it.

    Raises KdscaleError where there is none, or the teacher lacks embeddings.
    """
    revision = config.teacher.revision
    tokenizer = load_tokenizer(source, revision)
    shape = load_config_of(source, revision)
    require_embeddings(tokenizer, shape.get_text_config().vocab_size, source, revision)
    tokenizer.save_pretrained(folder)
    return folder


def config_to_train(config: RunConfig, prepared: DataFacts, shape: Any | None = None) -> Any:
    """Return the transformers config of the teacher that is loaded and trained further.

    Raises KdscaleError where its tokenizer, architecture or length does not fit.
    """
    shape = shape or _existing(config)
    task_spec, length = task_spec_of(config, prepared), config.data.seq_len
    fit_to_task(shape, prepared.vocab_size, prepared.special_ids, length, task_spec, "teacher")
    return shape


def check_teacher(config: RunConfig, prepared: DataFacts, shape: Any | None = None) -> Any:
    """Return the transformers config of the teacher that is loaded, and not trained further.

    Raises KdscaleError where it has another task, other classes or a smaller vocabulary than the
    run.
    """
    shape = shape or _existing(config)
    check_vocabulary(shape, prepared.vocab_size, "teacher")
    if task_of(shape) != config.task:
        raise KdscaleError(
            f"{config.teacher.load!r} is a {describe_task(task_of(shape))}, and the run's task is "
            f"{config.task!r}.",
            "Load a teacher of that task, or let `teacher.training` train this one for it.",
        )
    if prepared.classes:
        _check_classes(shape, prepared.classes)
    length = longest_input(task_spec_of(config, prepared), config.data.seq_len)
    check_positions(shape, length, "teacher")
    chunks = config.data.chunks
    if chunks is not None and getattr(shape, CHUNKS, None) != chunks.model_dump():
        raise KdscaleError(
            f"{config.teacher.load!r} was not trained on documents in chunks of {chunks.length} "
            f"tokens and their {chunks.pooling}.",
            "Train it further with `teacher.training`, or use the data.chunks that it was made "
            "for.",
        )
    return shape


def _existing(config: RunConfig) -> Any:
    return load_config_of(teacher_source(config, weights=False), config.teacher.revision)


def _check_classes(shape: Any, classes: tuple[str, ...]) -> None:
    found = tuple(shape.id2label[number] for number in sorted(shape.id2label))
    if found != classes:
        raise KdscaleError(
            f"The teacher tells {list(found)} apart, and the data has the classes {list(classes)}.",
            "Set data.labels.classes to the teacher's own, in its order, and data.labels.aliases "
            "for other names of them.",
        )
