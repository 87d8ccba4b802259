"""Prepared data as readers see it: rows by number, on any machine, verified before use.

A shard of a local store is memory-mapped in place. A shard of a remote one is fetched once a
machine into a folder of temporary files, named by its checksum, and memory-mapped from there: all
workers of the machine share it through the page cache.
"""

import hashlib
import shutil
import uuid
from collections import Counter
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from kdscale.data.chat.template import ChatTemplate
from kdscale.data.rows.classes import UNKNOWN_LABEL
from kdscale.data.rows.manifest import AUGMENTED, read_manifest
from kdscale.data.rows.pack import empty_rows
from kdscale.data.rows.shard_files import checksum, decode_shard
from kdscale.data.tokenizer import TOKENIZER_FILE, TokenizerInfo
from kdscale.errors import KdscaleError
from kdscale.store import Store, download_folder
from kdscale.types import Rows
from kdscale.utils.local_cache_dir import local_cache_dir


def open_prepared(store: Store) -> "Prepared":
    """Open the prepared data in `store`.

    Raises KdscaleError where it is missing or of another version.
    """
    manifest, raw = read_manifest(store)
    return Prepared(store, manifest, checksum(raw))


class Prepared:
    """One prepared data set; `manifest` is as `prepare` returned it."""

    def __init__(self, store: Store, manifest: dict[str, Any], manifest_checksum: str) -> None:
        self.manifest = manifest
        self._store = store
        self._checksum = manifest_checksum

    @property
    def tokenizer_info(self) -> TokenizerInfo:
        """Facts about the tokenizer that made the sequences."""
        names = [field.name for field in fields(TokenizerInfo)]
        return TokenizerInfo.from_dict({n: self.manifest["tokenizer"][n] for n in names})

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer: models may have more embeddings, never fewer."""
        return int(self.manifest["tokenizer"]["vocab_size"])

    @property
    def seq_len(self) -> int:
        """Tokens in a sequence."""
        return int(self.manifest["seq_len"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by number; none for language models."""
        return tuple(self.manifest.get("classes", ()))

    @property
    def chat_summary(self) -> str | None:
        """Sentence on the chat template; None where documents are no conversations."""
        chat = self.manifest["tokenizer"].get("chat")
        return None if chat is None else ChatTemplate.from_dict(chat).summary

    @property
    def outputs(self) -> int:
        """Size of a distribution: the classes, or else the ids of the tokenizer."""
        return len(self.classes) or self.vocab_size

    @property
    def special_ids(self) -> dict[str, int]:
        """bos, eos and pad ids, as transformers' configs call them."""
        tokenizer = self.manifest["tokenizer"]
        return {
            "bos_token_id": tokenizer["start_id"],
            "eos_token_id": tokenizer["end_id"],
            "pad_token_id": tokenizer["pad_id"],
        }

    @property
    def splits(self) -> list[str]:
        """`train`, `augmented` where there is one, `validation`, then the other evaluation sets."""
        return list(self.manifest["splits"])

    @property
    def evaluation_sets(self) -> list[str]:
        """`validation`, then the others."""
        return [name for name in self.splits if name not in ("train", AUGMENTED)]

    def training(self, stage: Literal["teacher", "cache"]) -> "RowTable":
        """Return the rows that a stage trains on or runs over.

        `train`, followed by the augmented copies where these are made for the stage.
        """
        splits = [self.manifest["splits"]["train"]]
        if stage in self.manifest.get("augmented_for", ()):
            splits.append(self.manifest["splits"][AUGMENTED])
        return RowTable(self._store, splits, self.manifest["seq_len"])

    def split(self, name: str) -> "RowTable":
        """Return the rows of one split. Raises KdscaleError for an unknown name."""
        if name not in self.manifest["splits"]:
            raise KdscaleError(
                f"The prepared data in {self._store} has no split {name!r}.",
                f"It has {', '.join(self.splits)}.",
            )
        return RowTable(self._store, [self.manifest["splits"][name]], self.manifest["seq_len"])

    def tokenizer_folder(self) -> Path:
        """Return a local folder for `AutoTokenizer.from_pretrained`.

        It is fetched if the store is remote. Raises KdscaleError where the tokenizer is not the one
        of the manifest.
        """
        folder = self._store.local_path("tokenizer") or self._fetched_tokenizer()
        path, expected = folder / TOKENIZER_FILE, self.manifest["tokenizer"]["sha256"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise KdscaleError(
                f"{TOKENIZER_FILE} in {folder} is missing or not the one that made the rows.",
                f"Delete {self._store} and run the prepare stage again.",
            )
        return folder

    def _fetched_tokenizer(self) -> Path:
        """Fetch the tokenizer of this manifest; the folder appears whole or not."""
        folder = local_cache_dir("prepared") / f"tokenizer-{self._checksum}"
        if not folder.is_dir():
            partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
            download_folder(self._store, "tokenizer", partial)
            try:
                partial.rename(folder)
            except OSError:
                # Another process of this machine was faster.
                shutil.rmtree(partial)
        return folder


class RowTable:
    """The R rows of some splits by row number.

    Safe to pickle and fork: shards are opened when needed.
    """

    def __init__(self, store: Store, splits: list[dict[str, Any]], seq_len: int) -> None:
        self._store = store
        self._splits = splits
        self._row_length = seq_len
        self._labelled = bool(splits[0].get("labelled", False))
        self._shards = [shard for split in splits for shard in split["shards"]]
        counts = [shard["rows"] for shard in self._shards]
        # Shard s holds the rows from bounds[s] to bounds[s + 1].
        self._bounds = np.cumsum([0, *counts])
        self._open: dict[int, Rows] = {}

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getstate__(self) -> dict[str, Any]:
        # Maps of this process are worth nothing in another, and would be copied whole.
        kept = {name: value for name, value in self.__dict__.items() if name != "sample_ids"}
        return kept | {"_open": {}}

    @cached_property
    def class_counts(self) -> dict[int, int]:
        """Rows of each class by number, -1 where it is not known or not used."""
        total: Counter[int] = Counter()
        for split in self._splits:
            total.update({int(k): n for k, n in split["counts"].get("classes", {}).items()})
        return dict(total)

    def labelled(self) -> np.ndarray:
        """Return [L] int64: the rows that have a label to train on.

        All of them in a language model's data; of classified rows every shard is read.
        """
        if not self.class_counts.get(UNKNOWN_LABEL):
            return np.arange(len(self))
        found = []
        for shard, first in enumerate(self._bounds[:-1]):
            rows = self._shard(shard)
            assert rows.labels is not None
            found.append(first + np.flatnonzero((rows.loss_mask & (rows.labels >= 0)).any(axis=1)))
        return np.concatenate(found)

    @cached_property
    def sample_ids(self) -> np.ndarray:
        """[R, 16] uint8 of all rows, in order; read without the shards."""
        parts = [_verified(self._store, split["sample_ids"]) for split in self._splits]
        return np.concatenate([np.frombuffer(part, np.uint8).reshape(-1, 16) for part in parts])

    def take(self, indices: np.ndarray) -> Rows:
        """Return the rows at `indices` ([B] integers in 0..R-1, repeats allowed), in order.

        Raises KdscaleError where a shard is missing or its checksum is wrong.
        """
        wanted = np.asarray(indices, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {len(self)}")
        result = empty_rows(len(wanted), self._row_length, pad_id=0, labelled=self._labelled)
        shards = np.searchsorted(self._bounds, wanted, side="right") - 1
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            source, at = self._shard(int(shard)), wanted[here] - self._bounds[shard]
            result.sample_ids[here] = source.sample_ids[at]
            result.input_ids[here] = source.input_ids[at]
            result.segment_ids[here] = source.segment_ids[at]
            result.loss_mask[here] = source.loss_mask[at]
            result.byte_counts[here] = source.byte_counts[at]
            if result.labels is not None and source.labels is not None:
                result.labels[here] = source.labels[at]
        return result

    def _shard(self, number: int) -> Rows:
        if number not in self._open:
            buffer = _verified(self._store, self._shards[number])
            self._open[number] = decode_shard(buffer)
        return self._open[number]


def _verified(store: Store, entry: dict[str, Any]) -> Any:
    """Map the stored object of a manifest's entry (key, bytes, xxh3) into memory.

    A damaged copy of a remote object is fetched again, once; an object damaged or missing in the
    store raises KdscaleError.
    """
    key, path = entry["key"], store.local_path(entry["key"])
    copy = path or local_cache_dir("prepared") / f"{entry['xxh3']}{Path(key).suffix}"
    buffer = _mapped(copy, entry)
    if buffer is None and path is None:
        try:
            store.get_file(key, copy)
        except FileNotFoundError:
            copy.unlink(missing_ok=True)
        buffer = _mapped(copy, entry)
    if buffer is None:
        raise KdscaleError(
            f"{key} in {store} is missing or damaged: it is not the one that the manifest names.",
            f"Delete {store} and run the prepare stage again; nothing else is lost.",
        )
    return buffer


def _mapped(path: Path, entry: dict[str, Any]) -> Any | None:
    """Map the file at `path`; None where it is missing or does not match the entry."""
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return None
    buffer = pa.memory_map(str(path)).read_buffer() if entry["bytes"] else pa.py_buffer(b"")
    return buffer if checksum(memoryview(buffer)) == entry["xxh3"] else None
