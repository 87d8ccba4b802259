"""Import of a set: survey it, plan a cache, commit its shards, publish.

The plan holds the figures that fix every row, so an import that was killed continues without a
second survey and writes the shards that are missing. What is committed is by content and by one
conditional put, as in every capture: each row is in the cache exactly once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.cache.codecs import make_codec, open_codec
from kdscale.cache.codecs.topk import Topk
from kdscale.cache.commit.manifest import Manifest, publish
from kdscale.cache.commit.plan import create_or_load_plan, load_plans, selection_hash
from kdscale.cache.commit.writer import ShardWriter, committed_shards
from kdscale.cache.format.records import Generation
from kdscale.cache.origin import write_origin
from kdscale.cache.rows import CachedRows, RowStats
from kdscale.cache.spec import FORMAT, Identity
from kdscale.config import fingerprint
from kdscale.config.cache import TopkCodec
from kdscale.data.rows.pack import concatenate
from kdscale.data.tokenizer import TokenizerInfo
from kdscale.errors import KdscaleError
from kdscale.importing.checks import Meaning, Values
from kdscale.importing.rows import RowPacker, encode
from kdscale.importing.sequence import Reader
from kdscale.importing.survey import Progress, Survey, distinct, survey
from kdscale.store import PutIfAbsent, Store, open_store

VALUE_BITS = 16
"""Bits of a stored log-probability."""

_SHARD_BYTES, _CHUNK_BYTES = 64 << 20, 2 << 20
_ROW_BYTES = 13  # a position's token, segment and mask, and what a row adds


@dataclass(frozen=True)
class Teacher:
    """The teacher of a set, as its user names it."""

    source: str
    revision: str | None
    digest: str  # of the identity: weights, or name@revision


@dataclass(frozen=True)
class ImportJob:
    """One set and the cache that it is to become."""

    reader: Reader
    out: Store
    teacher: Teacher
    tokenizer: Path  # folder with the adopted tokenizer
    info: TokenizerInfo
    decode: Callable[[list[int]], str]
    values: Values | None = None  # None: as the layout has it
    temperature: float = 1.0
    seq_len: int | None = None
    top_k: int | None = None
    pack: bool = True
    allow_misaligned: bool = False

    @property
    def meaning(self) -> Meaning:
        """Meaning of the values, as far as it is known before the survey."""
        values: Any = self.values or self.reader.values
        return Meaning(values, self.info.vocab_size, self.reader.tolerance)

    def survey(self, progress: Progress) -> Survey:
        """Read and check the whole set; nothing is written."""
        return survey(
            self.reader,
            self.meaning,
            seq_len=self.seq_len,
            top_k=self.top_k,
            pack=self.pack,
            decide_meaning=self.values is None and self.reader.values == "logprobs",
            allow_misaligned=self.allow_misaligned,
            progress=progress,
        )

    @property
    def data_fingerprint(self) -> str:
        """Fingerprint of the files, by name, size and time."""
        found = []
        for root, key in self.reader.files:
            store = open_store(root)
            path = store.local_path(key)
            time = 0 if path is None else path.stat().st_mtime_ns
            found.append([store.url, key, store.size(key), time])
        return fingerprint("import", self.reader.layout, found)

    @property
    def request(self) -> str:
        """Name of what is asked of the files, for the plan."""
        asked: list[Any] = [self.values, self.seq_len, self.top_k, self.pack, self.allow_misaligned]
        asked.append(self.reader.options)
        return selection_hash(int(fingerprint("import", asked)[:12], 16))

    def existing(self) -> tuple[Identity, Generation] | None:
        """Return the plan of an earlier attempt at this import.

        KdscaleError where `out` is the cache of something else.
        """
        plans = load_plans(self.out)
        if not plans:
            return None
        plan = plans[0]
        same = (plan.generation.data, plan.generation.request) == (
            self.data_fingerprint,
            self.request,
        )
        known = self._known_identity()
        differing = [name for name in known if plan.identity.get(name) != known[name]]
        if len(plans) > 1 or not same or differing:
            what = f"differs in {', '.join(differing)}" if differing else "is of other files"
            raise KdscaleError(
                f"{self.out} holds the cache of something else: its plan {what}, or these files "
                "or options have changed since.",
                "Import to an empty place; delete a cache that is no longer wanted.",
            )
        return plan.identity, plan.generation

    def run(
        self,
        surveyed: Survey | None,
        progress: Progress,
        put_if_absent: PutIfAbsent | None = None,
    ) -> Manifest:
        """Import what is missing, and publish. Safe to call again after it was killed.

        surveyed: of this job; None where an earlier attempt has a plan (`existing`).
        """
        found = self.existing()
        if found is None:
            assert surveyed is not None
            found = self._plan(surveyed, put_if_absent)
        identity, generation = found
        missing = set(range(len(generation.shards))) - committed_shards(self.out, generation)
        writer = ShardWriter(self.out, identity, generation, put_if_absent)
        done = 0
        for shard, rows in enumerate(_shards(self._rows(identity), generation)):
            if shard in missing and len(rows) == len(generation.shards[shard]):
                writer.commit(shard, rows.rows, rows.payload, _stats(rows))
            done += len(rows)
            progress(done, generation.rows, "rows")
        if done != generation.rows:
            raise KdscaleError(
                f"The set gives {done:,} rows, and {generation.rows:,} when it was planned.",
                "Import it again to an empty place: its files have changed meanwhile.",
            )
        return publish(self.out, generation, put_if_absent)

    def _plan(
        self, found: Survey, put_if_absent: PutIfAbsent | None
    ) -> tuple[Identity, Generation]:
        codec = make_codec(TopkCodec(k=found.k, value_bits=VALUE_BITS), self.info.vocab_size)
        identity: Identity = {
            "format": FORMAT,
            **self._known_identity(),
            "seq_len": found.seq_len,
            "codec": codec.describe(),
            "import": {
                "layout": found.layout,
                "values": found.meaning.values,
                "rest": "ghost" if found.meaning.rest_is_known else "unknown",
            },
        }
        row_bytes = found.seq_len * (codec.bytes_per_position + _ROW_BYTES)
        facts = {
            "task": "causal-lm",
            "teacher": {"source": self.teacher.source, "revision": self.teacher.revision},
            "tokenizer": self.info.as_dict(),
            "import": {"files": len(self.reader.files), **found.as_dict()},
        }
        write_origin(self.out, facts, self.tokenizer)
        generation = create_or_load_plan(
            self.out,
            identity,
            data=self.data_fingerprint,
            request=self.request,
            rows=found.rows,
            sequences_per_shard=max(1, _SHARD_BYTES // row_bytes),
            sequences_per_chunk=max(1, _CHUNK_BYTES // row_bytes),
            put_if_absent=put_if_absent,
        )
        return identity, generation

    def _known_identity(self) -> Identity:
        """Return the fields that are known before the survey."""
        return {
            "task": "causal-lm",
            "teacher": self.teacher.digest,
            "tokenizer": self.info.sha256,
            "vocab_size": self.info.vocab_size,
            "temperature": self.temperature,
            # Neither is known of a teacher that ran elsewhere; both matter to appends only.
            "dtype": "unknown",
            "seed": 0,
        }

    def _rows(self, identity: Mapping[str, Any]) -> Iterator[CachedRows]:
        """Yield all rows, one at a time, in the plan's order."""
        codec = open_codec(identity["codec"])
        assert isinstance(codec, Topk)
        known = identity["import"]["rest"] == "ghost"
        packer = RowPacker(int(identity["seq_len"]), self.info.pad_id, pack=self.pack)
        for _, entries, found in distinct(self.reader, self.meaning):
            targets = found.tokens[1:][found.scored[:-1]]
            text_bytes = len(self.decode(targets.tolist()).encode("utf-8", "replace"))
            yield from packer.add(encode(found, entries, codec, text_bytes, rest_is_known=known))
        yield from packer.close()


def _shards(rows: Iterator[CachedRows], generation: Generation) -> Iterator[CachedRows]:
    """Yield the rows of each shard of the plan; more rows come as one more shard."""
    sizes = [len(shard) for shard in generation.shards]
    waiting: list[CachedRows] = []
    for row in rows:
        waiting.append(row)
        if sizes and len(waiting) == sizes[0]:
            yield _together(waiting)
            waiting, sizes = [], sizes[1:]
    if waiting:
        yield _together(waiting)


def _together(parts: list[CachedRows]) -> CachedRows:
    return CachedRows(
        concatenate([part.rows for part in parts], parts[0].rows.input_ids.shape[1]),
        payload=np.concatenate([part.payload for part in parts]),
        entropy=np.concatenate([part.entropy for part in parts]),
        nll=np.concatenate([part.nll for part in parts]),
    )


def _stats(rows: CachedRows) -> RowStats:
    length = rows.rows.loss_mask.sum(1).astype(np.int32)
    return RowStats(rows.rows.sample_ids, rows.entropy, rows.nll, length)
