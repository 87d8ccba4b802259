"""A teacher that exists already: whether it fits the run, and what it is for."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdscale.config import RunConfig
from kdscale.data.prepared import Prepared
from kdscale.errors import KdscaleError
from kdscale.models.build import check_vocabulary, load_config_of
from kdscale.models.chunked import CHUNKS
from kdscale.models.folder import loadable
from kdscale.models.tasks import Purpose, describe_task, set_purpose, task_of


def purpose_of(config: RunConfig, prepared: Prepared) -> Purpose:
    """What the models of a run are for."""
    return Purpose(config.task, prepared.classes, config.data.chunks)


def teacher_source(config: RunConfig, *, weights: bool = True) -> str:
    """What `from_pretrained` takes on this machine for the teacher that the config loads; without
    `weights` for its config and tokenizer only."""
    source = config.teacher.load
    assert source is not None
    return loadable(source, weights=weights)


@contextmanager
def own_tokenizer(config: RunConfig) -> Iterator[Path | None]:
    """A folder, for a while, with the tokenizer of the teacher that the config loads; None where
    the run trains one. KdscaleError where the teacher has none that transformers can load."""
    with tempfile.TemporaryDirectory(prefix="kdscale-tokenizer-") as scratch:
        is_own = config.data.tokenizer.kind == "teacher"
        yield _save_tokenizer(config, Path(scratch)) if is_own else None


def _save_tokenizer(config: RunConfig, folder: Path) -> Path:
    from transformers import AutoTokenizer

    source = teacher_source(config, weights=False)
    try:
        AutoTokenizer.from_pretrained(
            source, revision=config.teacher.revision, trust_remote_code=False
        ).save_pretrained(folder)
    except (OSError, ValueError) as error:
        raise KdscaleError(
            f"transformers can load no tokenizer of {config.teacher.load!r}: {error}",
            "Give a folder with tokenizer files, or a hub name that this machine can reach.",
        ) from error
    return folder


def config_to_train(config: RunConfig, prepared: Prepared) -> Any:
    """The transformers config of the teacher that is loaded and trained further. KdscaleError where
    its tokenizer, architecture or length does not fit."""
    shape = load_config_of(teacher_source(config, weights=False), config.teacher.revision)
    check_vocabulary(shape, prepared.vocab_size, "teacher")
    set_purpose(shape, purpose_of(config, prepared), config.data.row_length)
    if shape.pad_token_id is None:
        # Classifiers over decoders find a row's end by it.
        shape.pad_token_id = prepared.special_ids["pad_token_id"]
    return shape


def check_teacher(config: RunConfig, prepared: Prepared) -> None:
    """KdscaleError where the teacher that is loaded, and not trained further, has another task,
    other classes or a smaller vocabulary than the run."""
    shape = load_config_of(teacher_source(config, weights=False), config.teacher.revision)
    check_vocabulary(shape, prepared.vocab_size, "teacher")
    if task_of(shape) != config.task:
        raise KdscaleError(
            f"{config.teacher.load!r} is a {describe_task(task_of(shape))}, and the run's task is "
            f"{config.task!r}.",
            "Load a teacher of that task, or let `teacher.training` train this one for it.",
        )
    if prepared.classes:
        _check_classes(shape, prepared.classes)
    chunks = config.data.chunks
    if chunks is not None and getattr(shape, CHUNKS, None) != chunks.model_dump():
        raise KdscaleError(
            f"{config.teacher.load!r} was not trained on documents in chunks of {chunks.length} "
            f"tokens and their {chunks.pooling}.",
            "Train it further with `teacher.training`, or use the data.chunks that it was made "
            "for.",
        )


def _check_classes(shape: Any, classes: tuple[str, ...]) -> None:
    found = tuple(shape.id2label[number] for number in sorted(shape.id2label))
    if found != classes:
        raise KdscaleError(
            f"The teacher tells {list(found)} apart, and the data has the classes {list(classes)}.",
            "Set data.labels.classes to the teacher's own, in its order, and data.labels.aliases "
            "for other names of them.",
        )
