"""Sets of Megatron-LM's offline logits distillation: tars of top-k log-probabilities.

The tars hold no tokens: a run with the same data and seed would see them again. They come beside
the set, one record a sample in the order of the run, S or S + 1 tokens each. Entry s of a sample is
about the token s + 1.

Version 1: `cp{C}_dp{D}__{last iteration}.tar` with `{iteration}.pt.zst`; each holds lists with a
tensor [S, B, K] a micro-batch. Micro-batch m of rank d is the (m * ranks + d)-th of its iteration.
With context parallelism a rank holds chunks c and 2 C - 1 - c of the sequence. Version 2:
`dp{D}__{start}-{end}.tar` with `{start}-{end}.pt.zst`, named by samples of the run; each holds one
tensor [S, N, K] of the rank's samples, micro-batch after micro-batch. The 17th bit of an id is a
bool, or packed eight to a byte over the whole tensor or along its last dimension. Values of -1e3
and below mark ids that a nucleus (top-p) left out.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from kdscale.data.sources.opening import open_raw
from kdscale.errors import KdscaleError
from kdscale.importing.files import columns_of, find, records, vector
from kdscale.importing.sequence import NO_ID, Sequence

_V1 = re.compile(r"(?:.*/)?cp(?P<cp>\d+)_dp(?P<dp>\d+)__(?P<last>\d+)\.tar")
_V2 = re.compile(r"(?:.*/)?dp(?P<dp>\d+)__(?P<start>\d+)-(?P<end>\d+)\.tar")
_MEMBER = re.compile(r"(?P<first>\d+)(?:-(?P<end>\d+))?\.pt\.zst")
_META = "_meta.json"
_LEFT_OUT = -999.0
_TOKENS = "input_ids"

File = tuple[str, str]


@dataclass(frozen=True)
class _Payload:
    """Samples of one rank in one iteration, in its order: values and ids [N, S, K]."""

    where: str
    first: int  # iteration (version 1) or first sample (version 2)
    end: int | None  # behind the last sample of all ranks (version 2)
    values: np.ndarray
    ids: np.ndarray
    micro_batch: int | None  # samples of a micro-batch, where the payload tells


@dataclass(frozen=True)
class Megatron:
    """A set of tars, and the files with the run's tokens."""

    tars: list[File]
    tokens: list[File]
    layout: str = "Megatron-LM, top-k tars"
    values: str = "logprobs"
    tolerance: float = 0.02

    @property
    def files(self) -> list[File]:
        """See `Reader.files`."""
        return [*self.tars, *self.tokens]

    @property
    def options(self) -> dict[str, Any]:
        """See `Reader.options`. Which files hold the tokens, as `files` has both kinds."""
        return {"tokens": [list(file) for file in self.tokens]}

    def sequences(self) -> Iterator[Sequence]:
        """See `Reader.sequences`."""
        rows = self._token_rows()
        place = 0
        for start, samples in self._batches():
            place = place if start is None else self._skip(rows, place, start)
            for where, values, ids in samples:
                found = next(rows, None)
                if found is None:
                    raise KdscaleError(
                        f"{where} is sample {place} of the run, and the tokens end before it.",
                        "Give all samples that the teacher saw, in the order of the run: --tokens.",
                    )
                yield _sequence(where, found, values, ids)
                place += 1
        if (more := next(rows, None)) is not None and not place:
            raise KdscaleError(
                f"The tars hold no sample, the tokens {more[0]}.", "Give the folder of the tars."
            )

    def _skip(self, rows: Iterator[Any], place: int, start: int) -> int:
        """Skip tokens of samples that no tar has; version 2 names the samples."""
        if start < place:
            raise KdscaleError(
                f"Tars overlap: sample {start} comes again after sample {place - 1}.",
                "Take out what an interrupted run left behind (files ending in .stale, or older).",
            )
        for _ in range(start - place):
            next(rows, None)
        return start

    def _token_rows(self) -> Iterator[tuple[str, np.ndarray]]:
        for file in self.tokens:
            if _TOKENS not in columns_of(file):
                raise KdscaleError(
                    f"{file[1]} has no column {_TOKENS!r}.",
                    f"Write the tokens of each sample to a column {_TOKENS!r}, one sample a row.",
                )
            for where, record in records(file, [_TOKENS]):
                yield where, vector(where, _TOKENS, record[_TOKENS]).astype(np.int64)

    def _batches(
        self,
    ) -> Iterator[tuple[int | None, list[tuple[str, np.ndarray, np.ndarray]]]]:
        """Yield (first sample where it is named, samples in the run's order) of each iteration."""
        ranks = _ranks(self.tars)
        dp_size = 1 + max(dp for _, dp in ranks)
        cp_size = 1 + max(cp for cp, _ in ranks)
        missing = {(c, d) for c in range(cp_size) for d in range(dp_size)} - ranks.keys()
        if missing:
            raise KdscaleError(
                f"The tars of rank cp{min(missing)[0]}_dp{min(missing)[1]} are missing: there are "
                f"those of {len(ranks)} ranks.",
                "Give the folder with the tars of all ranks.",
            )
        streams = [[_payloads(ranks[c, d]) for d in range(dp_size)] for c in range(cp_size)]
        before: _Payload | None = None
        while True:
            found = [[next(stream, None) for stream in row] for row in streams]
            present = [p for row in found for p in row if p is not None]
            if not present:
                return
            _check_round(present, cp_size * dp_size, before)
            whole = [_joined([row[d] for row in found]) for d in range(dp_size)]
            before = present[0]
            yield (before.first if before.end is not None else None), list(_in_order(whole))


def find_tars(place: str) -> list[File]:
    """Return the tars at `place`."""
    return [f for f in find(place, [".tar"]) if _V1.fullmatch(f[1]) or _V2.fullmatch(f[1])]


def _ranks(tars: list[File]) -> dict[tuple[int, int], list[File]]:
    """Return the tars by (context rank, data rank), each in the order of the run."""
    found: dict[tuple[int, int], list[tuple[int, File]]] = {}
    for file in tars:
        old, new = _V1.fullmatch(file[1]), _V2.fullmatch(file[1])
        if old:
            key, order = (int(old["cp"]), int(old["dp"])), int(old["last"])
        else:
            assert new is not None
            key, order = (0, int(new["dp"])), int(new["start"])
        found.setdefault(key, []).append((order, file))
    return {key: [file for _, file in sorted(files)] for key, files in found.items()}


def _payloads(tars: list[File]) -> Iterator[_Payload]:
    for file in tars:
        meta: dict[str, Any] = {}
        with open_raw(*file) as stream:
            try:
                with tarfile.open(fileobj=stream, mode="r|") as tar:
                    for member in tar:
                        data = tar.extractfile(member)
                        name = _MEMBER.fullmatch(member.name)
                        if member.name == _META and data is not None:
                            meta = json.loads(data.read())
                        elif name and data is not None:
                            where = f"{file[1]}, {member.name}"
                            end = None if name["end"] is None else int(name["end"])
                            yield _payload(where, int(name["first"]), end, data.read(), meta)
            except tarfile.TarError as error:
                raise KdscaleError(
                    f"{file[0]}/{file[1]} is damaged: {error}.", "Fetch or write it again."
                ) from error


def _payload(
    where: str, first: int, end: int | None, data: bytes, meta: dict[str, Any]
) -> _Payload:
    try:
        raw = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
        held = torch.load(io.BytesIO(raw), weights_only=True)
        values, low, high = (held[name] for name in ("values", "indices_low", "bit_17"))
    except Exception as error:  # whatever zstd, the unpickler and the keys make of wrong bytes
        raise KdscaleError(
            f"{where} cannot be decoded: {type(error).__name__}: {str(error)[:200]}",
            "Fetch or write the tar again; this layout is that of logits_saver.py of Megatron-LM.",
        ) from error
    micro_batch = meta.get("saver", {}).get("mbs_save")
    if isinstance(values, list):
        micro_batch = values[0].shape[1]
        widest = max(v.shape[-1] for v in values)
        parts = [_tables(*each, widest) for each in zip(values, low, high, strict=True)]
        tables = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    else:
        tables = _tables(values, low, high, values.shape[-1])
    return _Payload(where, first, end, tables[0], tables[1], micro_batch)


def _tables(
    values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """[S, N, K] tensors -> values and ids [N, S, width]."""
    shape = tuple(values.shape)
    bits = high.numpy()
    if bits.dtype == np.uint8 and bits.size != low.numel():
        whole = bits.size == -(-low.numel() // 8)
        unpacked = np.unpackbits(bits.reshape(-1)) if whole else np.unpackbits(bits, axis=-1)
        bits = unpacked.reshape(-1)[: low.numel()] if whole else unpacked[..., : shape[-1]]
    ids = low.view(torch.int16).numpy().view(np.uint16).astype(np.int64)
    ids |= bits.reshape(shape).astype(np.int64) << 16
    found = values.double().numpy()
    left_out = found <= _LEFT_OUT
    ids[left_out] = NO_ID
    found[left_out] = -np.inf
    beyond = ((0, 0), (0, 0), (0, width - shape[-1]))
    found = np.pad(found, beyond, constant_values=-np.inf)
    ids = np.pad(ids, beyond, constant_values=NO_ID)
    return found.swapaxes(0, 1), ids.swapaxes(0, 1)


def _check_round(present: list[_Payload], ranks: int, before: _Payload | None) -> None:
    """Refuse an iteration that a rank lacks, or one that is missing between two."""
    first = present[0]
    if len(present) < ranks or len({(p.first, p.end) for p in present}) > 1:
        raise KdscaleError(
            f"The ranks' tars do not hold the same iterations: {first.where}, but "
            f"{next((p.where for p in present if p.first != first.first), 'another ends before')}.",
            "Give the tars of all ranks, without what an interrupted run left behind.",
        )
    if before is not None and first.end is None and first.first != before.first + 1:
        raise KdscaleError(
            f"{first.where} follows on iteration {before.first}: its tokens cannot be found.",
            "Give the tars of all iterations in between.",
        )


def _joined(shards: list[_Payload | None]) -> _Payload:
    """Return the payload of a data rank, from the parts of its context ranks."""
    parts = [shard for shard in shards if shard is not None]
    if len(parts) == 1:
        return parts[0]
    chunks: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for rank, part in enumerate(parts):
        values, ids = (np.split(table, 2, axis=1) for table in (part.values, part.ids))
        chunks[rank] = values[0], ids[0]
        chunks[2 * len(parts) - 1 - rank] = values[1], ids[1]
    ordered = [chunks[number] for number in range(len(chunks))]
    return replace(
        parts[0],
        values=np.concatenate([values for values, _ in ordered], axis=1),
        ids=np.concatenate([ids for _, ids in ordered], axis=1),
    )


def _in_order(ranks: list[_Payload]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (where, values, ids [S, K]) of an iteration's samples in the order of the run."""
    samples, micro_batch = len(ranks[0].values), ranks[0].micro_batch
    if micro_batch is None:
        if len(ranks) > 1:
            raise KdscaleError(
                f"{ranks[0].where}: the tar's {_META} does not tell the micro-batch (mbs_save), by "
                f"which the samples of {len(ranks)} ranks take turns.",
                "Write it there, under `saver`.",
            )
        micro_batch = samples
    for start in [*range(0, samples, micro_batch)]:
        for rank in ranks:
            for sample in range(start, min(start + micro_batch, samples)):
                yield f"{rank.where}, sample {sample}", rank.values[sample], rank.ids[sample]


def _sequence(
    where: str, row: tuple[str, np.ndarray], values: np.ndarray, ids: np.ndarray
) -> Sequence:
    row_where, tokens = row
    if not 0 <= len(tokens) - len(values) <= 1:
        raise KdscaleError(
            f"{where}: {len(values)} positions; its tokens ({row_where}) are {len(tokens)}.",
            f"Give samples of {len(values)} or {len(values) + 1} tokens: --tokens.",
        )
    return Sequence(f"{where} ({row_where})", tokens, ids, values, first=1)
