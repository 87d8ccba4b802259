"""Corpora, cleaning steps, tokenizer and chat template."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from kdscale.config import RunConfig
from kdscale.config.augment import AugmentConfig
from kdscale.config.data import DataConfig, SourceConfig
from kdscale.data.cleaning.augment import Augmenter, table_paths
from kdscale.data.cleaning.cleaner import Cleaner
from kdscale.data.prepare import adopt_for_task, named_sources
from kdscale.data.rows.classes import Classes
from kdscale.data.rows.prepared import Prepared
from kdscale.data.sources.corpus import find_corpus
from kdscale.data.sources.fields import Document, Fields
from kdscale.data.sources.readers import is_saved_dataset, load_hub_dataset, read_shard
from kdscale.data.tokenizer import TokenizerInfo, train_tokenizer
from kdscale.errors import KdscaleError
from kdscale.preflight.context import Context, KnownData
from kdscale.preflight.locate import hub_answers, is_out_of_reach
from kdscale.store import Store, open_store
from kdscale.teacher.pretrained import cached_tokenizer, save_tokenizer

_FIRST_DOCUMENTS = 16  # documents of a source
_ONE_EACH = ("text", "python-stdlib", "python-docs")  # an input is a document


def check_text(context: Context) -> None:
    """Refuse a source that cannot be read, or a cleaning step that cannot be made."""
    data = context.config.data
    classes = None
    with context.findings.check("cleaning, augmentation and classes"):
        Cleaner(data)
        if data.augment is not None:
            _check_augment(context, data.augment)
        if data.labels is not None and data.labels.classes is not None:
            classes = Classes(data.labels.classes, data.labels.aliases)
    with context.findings.check("the first documents of each source"):
        for field, source in _sources(data):
            found = _first_documents(context, field, source)
            if classes is not None:
                for document in found:
                    classes.number(document.label)


def _check_augment(context: Context, augment: AugmentConfig) -> None:
    try:
        Augmenter(augment)
    except KdscaleError:
        absent = [path for path in table_paths(augment) if "://" in path or not _is_here(path)]
        if not context.options.runs_elsewhere or not absent:
            raise
        context.findings.unseen("data.augment.steps", absent[0])


def _sources(data: DataConfig) -> list[tuple[str, SourceConfig]]:
    """Return each source with the config field of its path."""
    found = []
    for name, sources in named_sources(data).items():
        field = "data.train" if name == "train" else f"data.evaluate.{name}"
        for number, source in enumerate(sources):
            is_mixture = name == "train" and isinstance(data.train, tuple)
            found.append((f"{field}.{number}.path" if is_mixture else f"{field}.path", source))
    return found


def _first_documents(context: Context, field: str, source: SourceConfig) -> list[Document]:
    """Read the first documents of a source; none of one that is out of reach."""
    data = context.config.data
    label = None if data.labels is None else data.labels.field
    path = str(source.path)
    try:
        if source.kind == "huggingface":
            _check_columns(context, Fields(source.text_field, label, data.chat), source)
            return []
        inputs = find_corpus(source).inputs
        found = list(islice(read_shard(inputs[0], source, label, data.chat), _FIRST_DOCUMENTS))
    except (KdscaleError, OSError) as error:
        absent = is_out_of_reach(error) if "://" in path else not _is_here(path)
        if not context.options.runs_elsewhere or not absent:
            raise
        context.findings.unseen(field, path)
        return []
    if field == "data.train.path" and source.kind in _ONE_EACH and len(inputs) < 2:
        raise KdscaleError(
            f"{len(inputs)} document is all that data.train has: training and validation need one.",
            "Give more documents.",
        )
    return found


def _check_columns(context: Context, fields: Fields, source: SourceConfig) -> None:
    """Check the columns of a Hugging Face data set by its description, without fetching it."""
    path = str(source.path)
    if is_saved_dataset(path):
        have = _saved_columns(open_store(path), source.split)
        if have is not None:
            fields.require(have, path)
        return
    if context.options.runs_elsewhere and not hub_answers():
        raise OSError("the hub does not answer")
    info: Any = load_hub_dataset(path, source.subset, None).info
    if info.features:
        fields.require(info.features, path)
    if info.splits and source.split not in info.splits:
        raise KdscaleError(
            f"The data set {path!r} has no split {source.split!r}, only {', '.join(info.splits)}.",
            "Set `split` of the source to one of these.",
        )


def _saved_columns(store: Store, split: str) -> list[str] | None:
    """Return the columns of a data set that `save_to_disk` wrote, by its description."""
    folder = ""
    if store.exists("dataset_dict.json"):
        splits = json.loads(store.get("dataset_dict.json"))["splits"]
        if split not in splits:
            raise KdscaleError(
                f"The data set {store} has no split {split!r}, only {', '.join(splits)}.",
                "Set `split` of the source to one of these.",
            )
        folder = f"{split}/"
    if not store.exists(f"{folder}dataset_info.json"):
        return None
    features = json.loads(store.get(f"{folder}dataset_info.json")).get("features")
    return None if features is None else list(features)


def _is_here(path: str) -> bool:
    """Tell whether a local path, or the folder that a glob starts from, exists."""
    root = path.split("*")[0].split("?")[0]
    root = root if root == path else root.rpartition("/")[0] or "."
    return Path(root).expanduser().exists()


_SMALLEST = 300  # ids: the bytes, the special tokens and a few more


def known_data(context: Context) -> KnownData | None:
    """Return the known facts about the run's data.

    From prepared data, else from the teacher's tokenizer, else from the config. None where the
    tokenizer is out of reach. Raises KdscaleError for a tokenizer, or a chat template, that does
    not serve.
    """
    config, prepared = context.config, context.prepared
    if prepared is not None:
        return of_prepared(prepared)
    labels = config.data.labels
    classes: tuple[str, ...] = ()
    if labels is not None and labels.classes is not None:
        classes = Classes(labels.classes, labels.aliases).names
    if config.data.tokenizer.kind == "train":
        if config.data.chat is not None:
            with context.findings.check("the chat template"):
                folder = context.scratch / "trained"
                train_tokenizer(["a"], _SMALLEST, folder, chat=config.data.chat)
        return KnownData(config.data.tokenizer.vocab_size, classes)
    absent = config.teacher.is_absent
    if not absent and (context.teacher_source is None or context.options.teacher_shape is not None):
        return None
    with context.findings.check("the cache's tokenizer" if absent else "the teacher's tokenizer"):
        folder, info = _adopted(config, context.teacher_source, context.scratch)
    special = {
        "bos_token_id": info.start_id,
        "eos_token_id": info.end_id,
        "pad_token_id": info.pad_id,
    }
    return KnownData(info.vocab_size, classes, special, True, folder, info.sha256)


def _adopted(config: RunConfig, source: str | None, scratch: Path) -> tuple[Path, TokenizerInfo]:
    """Make the tokenizer that the prepare stage will make of the teacher's, or the cache's."""
    saved, folder = scratch / "saved", scratch / "tokenizer"
    saved.mkdir()
    if source is None:
        cached_tokenizer(config, saved)
    else:
        save_tokenizer(config, source, saved)
    return folder, adopt_for_task(config.data, config.task, saved, folder)


def of_prepared(prepared: Prepared) -> KnownData:
    """Return the facts that prepared data have."""
    return KnownData(
        prepared.vocab_size,
        prepared.classes,
        prepared.special_ids,
        True,
        prepared.tokenizer_folder(),
        prepared.manifest["tokenizer"]["sha256"],
    )
