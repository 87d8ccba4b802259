"""The tokenizer of a run before there are rows: how many ids it has, and whether it serves."""

from pathlib import Path

from kdscale.config import RunConfig
from kdscale.data.prepare import adopt_for_task
from kdscale.data.rows.classes import Classes
from kdscale.data.rows.prepared import Prepared
from kdscale.data.tokenizer import TokenizerInfo, train_tokenizer
from kdscale.preflight.view import KnownData, View
from kdscale.teacher.pretrained import save_tokenizer

_SMALLEST = 300  # ids: the bytes, the special tokens and a few more


def look_at_tokenizer(view: View) -> KnownData | None:
    """What is known of the run's rows: from those that are there, else from the teacher's
    tokenizer, else from the config. None where the tokenizer is out of sight.

    Raises KdscaleError for a tokenizer, or a chat template, that does not serve.
    """
    config, prepared = view.config, view.prepared
    if prepared is not None:
        return of_prepared(prepared)
    labels = config.data.labels
    classes: tuple[str, ...] = ()
    if labels is not None and labels.classes is not None:
        classes = Classes(labels.classes, labels.aliases).names
    if config.data.tokenizer.kind == "train":
        if config.data.chat is not None:
            with view.findings.check("the chat template"):
                folder = view.scratch / "trained"
                train_tokenizer(["a"], _SMALLEST, folder, chat=config.data.chat)
        return KnownData(config.data.tokenizer.vocab_size, classes)
    if view.teacher_source is None or view.sight.teacher_shape is not None:
        return None
    with view.findings.check("the teacher's tokenizer"):
        folder, info = _adopted(config, view.teacher_source, view.scratch)
    special = {
        "bos_token_id": info.start_id,
        "eos_token_id": info.end_id,
        "pad_token_id": info.pad_id,
    }
    return KnownData(info.vocab_size, classes, special, True, folder, info.sha256)


def _adopted(config: RunConfig, source: str, scratch: Path) -> tuple[Path, TokenizerInfo]:
    """The tokenizer that the prepare stage will make of the teacher's."""
    saved, folder = scratch / "saved", scratch / "tokenizer"
    save_tokenizer(config, source, saved)
    return folder, adopt_for_task(config.data, config.task, saved, folder)


def of_prepared(prepared: Prepared) -> KnownData:
    """What rows that are there say of themselves."""
    return KnownData(
        prepared.vocab_size,
        prepared.classes,
        prepared.special_ids,
        True,
        prepared.tokenizer_folder(),
        prepared.manifest["tokenizer"]["sha256"],
    )
