"""Models from outside the run, evaluated beside teacher, student and baseline."""

from pathlib import Path

from kdscale.config import RunConfig
from kdscale.data.pretrained_tokenizer import load_tokenizer
from kdscale.data.rows.prepared import Prepared
from kdscale.errors import KdscaleError
from kdscale.models.hf_folder import ModelReference, reference_to
from kdscale.models.load import check_vocabulary, load_config_of
from kdscale.models.positions import check_positions
from kdscale.models.tasks import TaskSpec, describe_task, longest_input, task_of
from kdscale.types import DataFacts


def external_references(
    config: RunConfig, prepared: Prepared, own: Prepared | None = None
) -> tuple[dict[str, ModelReference], frozenset[str]]:
    """Return the models of evaluate.models by name, and the names of those that read `own`.

    `own` is the data in the tokens of a student with its own tokenizer. Raises KdscaleError for
    a model that cannot be scored on the run's sequences.
    """
    found, aligned = {}, set()
    for name, source in config.evaluate.models.items():
        found[name] = reference_to(source, None, name)
        folder, data = found[name].local(), prepared
        if own is not None and has_tokenizer(folder, own.tokenizer_folder()):
            data = own
            aligned.add(name)
        check_external_model(name, folder, config, data, data.tokenizer_folder())
    return found, frozenset(aligned)


def has_tokenizer(folder: str, tokenizer: Path) -> bool:
    """Return whether the model in `folder` has the ids of `tokenizer`, a folder."""
    return _vocabulary(folder) == _vocabulary(tokenizer)


def check_external_model(
    name: str, folder: str, config: RunConfig, data: DataFacts | None, tokenizer: Path | None
) -> None:
    """Check that the model in `folder` fits the run.

    Raises KdscaleError where it has another task, other classes or another tokenizer than the run,
    as far as the run's `data` and the folder of its `tokenizer` are known.
    """
    shape, what = load_config_of(folder), f"model {name!r} of evaluate.models"
    if task_of(shape) != config.task:
        raise KdscaleError(
            f"The {what} is a {describe_task(task_of(shape))}, and the run's task is "
            f"{config.task!r}.",
            "Leave it out, or give a model of the run's task.",
        )
    task_spec = TaskSpec(config.task, chunks=config.data.chunks)
    longest = max(config.data.seq_len, config.student_seq_len)
    check_positions(shape, longest_input(task_spec, longest), what)
    classes = tuple(shape.id2label[number] for number in sorted(shape.id2label))
    if data is not None and data.classes and classes != data.classes:
        raise KdscaleError(
            f"The {what} has the classes {list(classes)}, the data {list(data.classes)}.",
            "Give a model with the run's classes, in their order.",
        )
    if data is None or tokenizer is None:
        return
    check_vocabulary(shape, data.vocab_size, what)
    if not has_tokenizer(folder, tokenizer):
        raise KdscaleError(
            f"The {what} has another tokenizer than the run: its losses are of other tokens, and "
            "it cannot be compared with the teacher token by token.",
            f"Compare bytes instead: kdscale lm-eval OUTPUT --model {name}={folder}, whose "
            "heldout_bits_per_byte suits any tokenizer.",
        )


def _vocabulary(folder: str | Path) -> dict[str, int]:
    vocabulary: dict[str, int] = load_tokenizer(str(folder)).get_vocab()
    return vocabulary
