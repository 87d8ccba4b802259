"""One split's documents to its shards: tokens -> rows -> a sample of them -> Arrow files."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, Protocol

from kdscale.config.data import DataConfig
from kdscale.config.task import Task
from kdscale.data.documents import Chosen, TokenDocument, read_tokens
from kdscale.data.even import EvenSample
from kdscale.data.examples import ClassifiedRows, MaskedRows
from kdscale.data.rows import Layout, RowBuilder, RowCounts
from kdscale.data.shards import checksum, encode_shard, in_shards, rows_per_shard
from kdscale.data.tokenizer import TokenizerInfo
from kdscale.store import Store
from kdscale.types import Rows

REPORT_EVERY_DOCUMENTS = 64


class Builder(Protocol):
    """What makes rows of a split's documents; `counts` is complete when `build` is exhausted."""

    counts: RowCounts

    def build(self, documents: Iterable[TokenDocument]) -> Iterator[Rows]:
        """Rows in chunks."""
        ...


class _NextTokenRows(RowBuilder):
    """Rows for causal language models, which know nothing of classes."""

    def build(self, documents: Iterable[Any]) -> Iterator[Rows]:
        """See RowBuilder."""
        return super().build((each.tokens, each.byte_count, each.targets) for each in documents)


def make_builder(task: Task, config: DataConfig, info: TokenizerInfo) -> Builder:
    """Of the rows that a task learns from."""
    if task == "sequence-classification":
        return ClassifiedRows(config, info)
    if task == "masked-lm":
        return MaskedRows(config, info)
    return _NextTokenRows(
        Layout(
            row_length=config.row_length,
            overlap=config.overlap,
            truncate=config.long_documents == "truncate",
            pack=config.pack,
            pad_id=info.pad_id,
            drop=config.long_documents == "drop",
        )
    )


class SplitWriter:
    """Writes splits that share a task, a config, a store and a tokenizer.

    Each method takes a split's name, the documents (from `read_corpus`), which of them, and how
    many these are, and returns the split's entry of the manifest.
    """

    def __init__(
        self,
        task: Task,
        config: DataConfig,
        store: Store,
        tokenizer_json: str,
        info: TokenizerInfo,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self._task = task
        self._config = config
        self._store = store
        self._tokenizer_json = tokenizer_json
        self._info = info
        self._progress = progress

    def write(self, name: str, data: Any, chosen: Chosen, documents: int) -> dict[str, Any]:
        """All rows."""
        builder = make_builder(self._task, self._config, self._info)
        rows = builder.build(self._documents(name, data, chosen, documents))
        return self._store_rows(name, rows, builder.counts)

    def write_sample(self, name: str, data: Any, chosen: Chosen, documents: int) -> dict[str, Any]:
        """`evaluation_rows` rows, evenly over all."""
        builder = make_builder(self._task, self._config, self._info)
        sample = EvenSample(self._config.evaluation_rows, self._config.row_length)
        for rows in builder.build(self._documents(name, data, chosen, documents)):
            sample.offer(rows)
        return self._store_rows(name, [sample.result()], builder.counts)

    def _documents(
        self, name: str, data: Any, chosen: Chosen, documents: int
    ) -> Iterator[TokenDocument]:
        """The split's token documents; reports progress on the way."""
        tokens = read_tokens(data, chosen, self._tokenizer_json, self._info)
        for done, document in enumerate(tokens):
            if done % REPORT_EVERY_DOCUMENTS == 0:
                self._progress(done, documents, f"rows of {name}")
            yield document

    def _store_rows(self, name: str, chunks: Iterable[Rows], counts: RowCounts) -> dict[str, Any]:
        """Put the rows as shards, and their ids beside them. `counts` are complete after that."""
        length = self._config.row_length
        shards, ids = [], bytearray()
        targets, byte_count = 0, 0.0
        classes: Counter[int] = Counter()
        for number, rows in enumerate(in_shards(chunks, length, rows_per_shard(length))):
            entry = self._put(f"rows/{name}-{number:05d}.arrow", encode_shard(rows))
            shards.append({**entry, "rows": len(rows)})
            ids += rows.sample_ids.tobytes()
            targets += int(rows.loss_mask.sum())
            byte_count += float(rows.byte_counts.sum())
            if rows.labels is not None:
                classes.update(rows.labels[rows.loss_mask].tolist())
        written: dict[str, Any] = {
            "rows_written": len(ids) // 16,
            "targets_written": targets,
            "bytes_written": byte_count,
            "padding_share": counts.padding / max(1, counts.rows * length),
        }
        if self._task == "sequence-classification":
            written["classes"] = {str(number): classes[number] for number in sorted(classes)}
        return {
            "counts": asdict(counts) | written,
            "labelled": self._task != "causal-lm",
            "shards": shards,
            "sample_ids": self._put(f"rows/{name}.ids", bytes(ids)),
        }

    def _put(self, key: str, data: bytes) -> dict[str, Any]:
        self._store.put(key, data)
        return {"key": key, "bytes": len(data), "xxh3": checksum(data)}
