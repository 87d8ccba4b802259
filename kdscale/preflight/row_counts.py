"""Number of sequences of a run: counted where they are prepared, else estimated."""

import math
from dataclasses import dataclass
from pathlib import Path

from kdscale.config import RunConfig
from kdscale.config.data import DataConfig, SourceConfig
from kdscale.data.rows.prepared import Prepared
from kdscale.data.rows.selection import mixture_bytes
from kdscale.data.sources.corpus import find_corpus
from kdscale.errors import KdscaleError
from kdscale.preflight.context import Context
from kdscale.run.artifacts import RunArtifacts
from kdscale.store import open_store

# Bytes of text a token takes for each bit of log2(V), of byte-pair vocabularies on English and
# code: 3.1 at V = 2,048, 4.4 at 49,152, 4.8 at 128,256.
_BYTES_A_BIT = 0.28
# Columnar files are compressed.
_PARQUET_TEXT = 2.5
_TARGETS_SHARE = 0.99
# Share of conversations that are answers, before they are read.
_ANSWERS_SHARE = 0.5
# Where documents are classified, but their classes are not known yet.
_CLASSES = 2


@dataclass(frozen=True)
class Tokens:
    """Sequences of a run; positions are sequences times their length, targets or not."""

    rows: int  # of the training split
    captured_rows: int
    seq_len: int  # T
    targets_share: float  # of positions, those that are predicted
    vocab_size: int  # V of the tokenizer
    outputs: int  # what a distribution is over: V, or the classes
    evaluation_sequences: tuple[int, ...]  # of each evaluation set
    corpus_bytes: int | None  # of the training text as stored; None if unknown
    source: str
    prepared: bool = False  # whether the rows are there

    @property
    def captured(self) -> int:
        """Positions that the teacher runs over."""
        return self.captured_rows * self.seq_len


def count_tokens(config: RunConfig, vocab_size: int, given: float | None = None) -> Tokens:
    """Return the sequences of `config`, with a tokenizer of about `vocab_size` ids.

    `given` tokens of training text, else those of the prepared data, else an estimate: (1 -
    validation share) * bytes / (0.28 log2 V). Raises KdscaleError where the corpus is missing or
    its size is not known.
    """
    evaluation = (config.data.evaluation_sequences,) * (1 + len(config.data.evaluate))
    share = 1 - config.data.validation_share
    size = None
    if given is not None:
        tokens, source = given, f"{given:,.0f} tokens as given"
    else:
        found = _prepared(config)
        if found is not None:
            return _of_prepared(config, found)
        size = _training_bytes(config.data)
        tokens = share * size / (_BYTES_A_BIT * math.log2(vocab_size))
        source = f"estimated from {size:,} bytes of text"
    rows = max(1, round(tokens / config.data.seq_len))
    return Tokens(
        rows=rows,
        captured_rows=min(config.cache.sequences or rows, rows),
        seq_len=config.data.seq_len,
        targets_share=_targets_share(config),
        vocab_size=vocab_size,
        outputs=_outputs(config, vocab_size),
        evaluation_sequences=evaluation,
        corpus_bytes=size,
        source=source,
    )


def _targets_share(config: RunConfig) -> float:
    """Return the share of positions that have a target."""
    if config.task == "sequence-classification":
        return 1 / config.data.seq_len
    if config.data.chat is not None:
        return _ANSWERS_SHARE
    return config.data.masking.share if config.task == "masked-lm" else _TARGETS_SHARE


def _outputs(config: RunConfig, vocab_size: int) -> int:
    labels = config.data.labels
    return vocab_size if labels is None else len(labels.classes or ()) or _CLASSES


def _prepared(config: RunConfig) -> Prepared | None:
    """Return the prepared data of `config`, if there are any."""
    try:
        run = RunArtifacts(config)
        return run.prepared if run.prepared_store.exists("manifest.json") else None
    except KdscaleError as error:
        raise KdscaleError(error.problem, f"{error.fix} Or plan without it: --tokens N.") from error


def _of_prepared(config: RunConfig, prepared: Prepared) -> Tokens:
    splits = prepared.manifest["splits"]
    train, others = splits["train"]["counts"], prepared.evaluation_sets
    rows = len(prepared.training("cache"))
    positions = rows * config.data.seq_len
    written = train["rows_written"] * config.data.seq_len
    return Tokens(
        rows=rows,
        captured_rows=min(config.cache.sequences or rows, rows),
        seq_len=config.data.seq_len,
        targets_share=train["targets_written"] / max(1, written),
        vocab_size=prepared.vocab_size,
        outputs=prepared.outputs,
        evaluation_sequences=tuple(splits[name]["counts"]["rows_written"] for name in others),
        corpus_bytes=int(train["bytes_written"]),
        source=f"{positions:,} positions of the prepared data",
        prepared=True,
    )


def _training_bytes(data: DataConfig) -> int:
    """Return the bytes of the training source, or of the mixture's parts of its sources."""
    if isinstance(data.train, SourceConfig):
        return corpus_bytes(data.train)
    totals = [corpus_bytes(source) for source in data.train]
    return int(sum(mixture_bytes(totals, [source.weight for source in data.train])))


def corpus_bytes(source: SourceConfig) -> int:
    """Return the bytes of text in a source, from the sizes of its files alone."""
    if source.kind == "huggingface" or (
        source.limit and source.kind in ("jsonl", "csv", "parquet")
    ):
        raise KdscaleError(
            f"How much text data.train ({source.kind}) has is not known before it is read.",
            "Plan with --tokens N, or run the prepare stage first.",
        )
    inputs = find_corpus(source).inputs
    local = [Path(shard.root) / shard.key for shard in inputs]
    if all(path.is_file() for path in local):
        total = sum(path.stat().st_size for path in local)
    else:
        total = sum(open_store(shard.root).size(shard.key) for shard in inputs)
    return int(total * (_PARQUET_TEXT if source.kind == "parquet" else 1))


_MUCH = 1.5  # times as many rows captured as read


def note_unread(context: Context) -> None:
    """Note captured sequences that the student never reads, and batches larger than the cache."""
    config, training = context.config, context.config.distill.training
    if config.cache.reuse is not None:
        return
    captured = _captured(context)
    if captured is None:
        return
    rows, is_exact = captured
    about = "" if is_exact else "about "
    read = training.steps * training.global_batch_size
    if rows > _MUCH * read and context.makes("cache"):
        share = f"{read / rows:.0%}" if read >= rows / 100 else "less than 1%"
        context.findings.note(
            f"The student reads {read:,} rows ({training.steps:,} steps of "
            f"{training.global_batch_size:,}), {share} of the {about}{rows:,} that the cache "
            f"captures: set cache.sequences to {read}, or train it for longer."
        )
    if training.global_batch_size > rows:
        context.findings.note(
            f"A batch has {training.global_batch_size:,} rows "
            f"(distill.training.global_batch_size), and the cache {about}{rows:,}: "
            "it will have some of them more than once."
        )


def _captured(context: Context) -> tuple[int, bool] | None:
    """Return the sequences of the cache and whether they were counted; None if unknown."""
    if context.prepared is not None:
        return len(context.run.selected), True
    if context.data is None and context.options.tokens is None:
        return None
    ids = context.data.vocab_size if context.data is not None else 32_000
    try:
        found = count_tokens(context.config, ids, context.options.tokens)
    except (KdscaleError, OSError):
        return None
    return found.captured_rows, found.prepared
