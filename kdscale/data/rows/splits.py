"""Writer of splits: documents to tokens, rows, a sample of them, Arrow files."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Protocol

import numpy as np

from kdscale.config.data import DataConfig
from kdscale.config.task import Task
from kdscale.data.cleaning.augment import Augmenter
from kdscale.data.documents import Documents, Encoding, Selection, TokenDocument
from kdscale.data.rows.examples import ClassifiedRows, MaskedRows
from kdscale.data.rows.order import spread
from kdscale.data.rows.pack import Layout, RowBuilder, RowCounts, concatenate
from kdscale.data.rows.shard_files import (
    checksum,
    encode_shard,
    file_checksum,
    in_shards,
    rows_per_shard,
)
from kdscale.data.tokenizer import TokenizerInfo
from kdscale.store import Store
from kdscale.types import Rows

REPORT_EVERY_DOCUMENTS = 64


class Builder(Protocol):
    """Builder of a split's rows; `counts` is complete when `build` is exhausted."""

    counts: RowCounts

    def build(self, documents: Iterable[TokenDocument]) -> Iterator[Rows]:
        """Yield rows in chunks."""
        ...


class _NextTokenRows(RowBuilder):
    """Builder of rows for causal language models, without classes."""

    def build(self, documents: Iterable[Any]) -> Iterator[Rows]:
        """Yield rows as RowBuilder does."""
        return super().build((each.tokens, each.byte_count, each.targets) for each in documents)


def make_builder(task: Task, config: DataConfig, info: TokenizerInfo, overlap: int) -> Builder:
    """Return the builder of a task's rows; a split document's share `overlap` tokens."""
    if task == "sequence-classification":
        return ClassifiedRows(config, info)
    if task == "masked-lm":
        return MaskedRows(config, info)
    return _NextTokenRows(
        Layout(
            seq_len=config.seq_len,
            overlap=overlap,
            truncate=config.long_documents == "truncate",
            pack=config.pack,
            pad_id=info.pad_id,
            drop=config.long_documents == "drop",
        )
    )


class SplitWriter:
    """Writer of splits that share a task, a config, a store and a tokenizer.

    Each method takes a split's name and its documents, and returns the split's manifest entry.
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

    def write(
        self,
        name: str,
        documents: Documents,
        chosen: Selection,
        augmenter: Augmenter | None = None,
    ) -> dict[str, Any]:
        """Write all rows of the documents, or of their augmented copies."""
        config = self._config
        builder = make_builder(self._task, config, self._info, config.overlap)
        rows = builder.build(self._encoded(name, documents, chosen, augmenter))
        return self._counted(self._store_rows(name, rows, builder.counts), chosen)

    def write_sample(self, name: str, documents: Documents, chosen: Selection) -> dict[str, Any]:
        """Write `evaluation_sequences` rows, evenly spaced over all."""
        config = self._config
        builder = make_builder(self._task, config, self._info, config.evaluation_overlap)
        sample = EvenSample(config.evaluation_sequences, config.seq_len)
        for rows in builder.build(self._encoded(name, documents, chosen)):
            sample.offer(rows)
        return self._counted(self._store_rows(name, [sample.result()], builder.counts), chosen)

    def _counted(self, entry: dict[str, Any], chosen: Selection) -> dict[str, Any]:
        """Add the number of conversations, each of which may have given several texts."""
        if self._info.chat is not None:
            entry["counts"]["conversations"] = int(chosen.covered.sum())
        return entry

    def _encoded(
        self,
        name: str,
        documents: Documents,
        chosen: Selection,
        augmenter: Augmenter | None = None,
    ) -> Iterator[TokenDocument]:
        """Yield the split's token documents and report progress."""
        total = int(chosen.covered.sum()) * (1 if augmenter is None else augmenter.copies)
        encoding = Encoding(self._tokenizer_json, self._info, augmenter)
        for done, document in enumerate(documents.tokens(name, chosen, encoding)):
            if done % REPORT_EVERY_DOCUMENTS == 0:
                # Conversations may give more texts than they are.
                self._progress(min(done, total), total, f"rows of {name}")
            yield document

    def _store_rows(self, name: str, chunks: Iterable[Rows], counts: RowCounts) -> dict[str, Any]:
        """Write the rows as shards, and their ids beside them."""
        # The ids of all rows are one object, which may be larger than memory.
        with TemporaryDirectory(prefix="kdscale-ids-") as folder:
            ids = Path(folder) / "ids"
            with ids.open("wb") as file:
                shards, written = self._put_shards(name, chunks, file)
            sample_ids = self._put_file(f"rows/{name}.ids", ids)
        written["padding_share"] = counts.padding / max(1, counts.rows * self._config.seq_len)
        classes = written.pop("classes")
        if self._task == "sequence-classification":
            written["classes"] = {str(number): classes[number] for number in sorted(classes)}
        return {
            "counts": asdict(counts) | written,
            "labelled": self._task != "causal-lm",
            "shards": shards,
            "sample_ids": sample_ids,
        }

    def _put_shards(
        self, name: str, chunks: Iterable[Rows], ids: BinaryIO
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Write the shards, and the rows' ids to a file; return entries and counts."""
        length, shards = self._config.seq_len, []
        targets, byte_count = 0, 0.0
        classes: Counter[int] = Counter()
        for number, rows in enumerate(in_shards(chunks, length, rows_per_shard(length))):
            entry = self._put(f"rows/{name}-{number:05d}.arrow", encode_shard(rows))
            shards.append({**entry, "rows": len(rows)})
            ids.write(rows.sample_ids.tobytes())
            targets += int(rows.loss_mask.sum())
            byte_count += float(rows.byte_counts.sum())
            if rows.labels is not None:
                classes.update(rows.labels[rows.loss_mask].tolist())
        return shards, {
            "rows_written": sum(shard["rows"] for shard in shards),
            "targets_written": targets,
            "bytes_written": byte_count,
            "classes": classes,
        }

    def _put(self, key: str, data: bytes) -> dict[str, Any]:
        self._store.put(key, data)
        return {"key": key, "bytes": len(data), "xxh3": checksum(data)}

    def _put_file(self, key: str, path: Path) -> dict[str, Any]:
        self._store.put_file(key, path)
        with path.open("rb") as file:
            return {"key": key, "bytes": path.stat().st_size, "xxh3": file_checksum(file)}


class EvenSample:
    """Evenly spaced sample of a stream of unknown length, at most `wanted` rows in order.

    Every stride-th row is kept and the stride doubles when twice the wanted rows are held, so
    memory stays below two times the result (and a chunk). The choice depends on positions only, not
    on how the stream was cut into chunks.
    """

    def __init__(self, wanted: int, seq_len: int) -> None:
        self._wanted = wanted
        self._row_length = seq_len
        self._stride = 1
        self._offered = 0
        self._parts: list[Rows] = []
        self._held = 0

    def offer(self, rows: Rows) -> None:
        """Take the stream's next rows."""
        # The first of these rows whose position in the stream is a multiple of the stride.
        first = -self._offered % self._stride
        self._offered += len(rows)
        picked = rows.take(np.arange(first, len(rows), self._stride))
        if len(picked):
            self._parts.append(picked)
            self._held += len(picked)
        while self._held >= 2 * self._wanted:
            held = concatenate(self._parts, self._row_length)
            thinned = held.take(np.arange(0, self._held, 2))
            self._parts, self._held = [thinned], len(thinned)
            self._stride *= 2

    def result(self) -> Rows:
        """Return the chosen rows."""
        held = concatenate(self._parts, self._row_length)
        count = min(self._wanted, self._held)
        return held.take(spread(count, self._held))
