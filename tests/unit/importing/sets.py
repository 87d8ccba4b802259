"""Sets of top-k distributions as other tools write them, written anew from their layouts."""

import io
import json
import struct
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from kdscale.data.tokenizer import train_tokenizer

V = 280
"""Ids of the tokenizer in `tokenizer_folder`."""


def tokenizer_folder(folder: Path) -> Path:
    """Train a byte-level tokenizer of V ids."""
    texts = [f"the {word} was {word}ing while it {word}ed" for word in ("walk", "talk", "jump")]
    train_tokenizer(texts, V, folder)
    return folder


@dataclass(frozen=True)
class Source:
    """Sequences of a teacher, and its whole distributions in float64."""

    tokens: list[np.ndarray]
    log_probs: list[np.ndarray]  # [n, V]: row i is of token i + 1

    def top(self, number: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k most probable ids of each position of a sequence, with log-probabilities."""
        whole = self.log_probs[number]
        ids = np.argsort(-whole, axis=1, kind="stable")[:, :k]
        return ids, np.take_along_axis(whole, ids, 1)


def make_source(lengths: Sequence[int], seed: int = 0, peak: float = 3.0) -> Source:
    """Draw sequences from a random first-order teacher, whose labels fit its distributions."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, peak, (V, V))
    # Positions differ, so that a shift by one is a different distribution.
    table = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    tokens, log_probs = [], []
    for length in lengths:
        row = [int(generator.integers(V))]
        for _ in range(length - 1):
            row.append(int(generator.choice(V, p=np.exp(table[row[-1]]))))
        tokens.append(np.array(row))
        log_probs.append(table[row])
    return Source(tokens, log_probs)


# --- DistillKit -----------------------------------------------------------------------------------


def _bits(numbers: Iterable[int], width: int) -> bytes:
    """Return numbers as one stream of bits, the highest first, filled up to a byte."""
    text = "".join(format(int(number), f"0{width}b") for number in numbers)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def _floats(values: np.ndarray, dtype: str) -> tuple[bytes, np.ndarray]:
    """Return the bytes of values in `dtype`, and what they then are."""
    if dtype == "bfloat16":
        held = torch.tensor(values).bfloat16()
        return held.view(torch.int16).numpy().tobytes(), held.double().numpy()
    kind = {"float16": "e", "float32": "f", "float64": "d"}[dtype]
    data = struct.pack(f"<{len(values)}{kind}", *values)
    return data, np.array(struct.unpack(f"<{len(values)}{kind}", data))


# DistillKit's README: its recommended and budget settings, and that of its published sets.
RECOMMENDED: dict[str, Any] = {
    "k": 128,
    "exact_k": 16,
    "exact_dtype": "bfloat16",
    "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
    "term_dtype": "float32",
    "residual_bins": [],
    "delta_encoding": False,
    "error_diffusion": False,
}
BUDGET = RECOMMENDED | {"k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"]}
PUBLISHED = RECOMMENDED | {
    "exact_k": 32,
    "exact_dtype": "float32",
    "polynomial_terms": [0, 1, 2],
    "delta_encoding": True,
}


def compress_position(values: np.ndarray, config: dict[str, Any]) -> tuple[bytes, np.ndarray]:
    """Return one position's values as DistillKit stores them, and what these stand for."""
    exact_k, count = config["exact_k"], config["k"] - config["exact_k"]
    kept = np.diff(values, prepend=0.0) if config["delta_encoding"] else values
    data, exact = _floats(kept[:exact_k], config["exact_dtype"])
    rest, fit = kept[exact_k:], np.zeros(count)
    if config["polynomial_terms"]:
        t = np.linspace(0, 1, count) if config.get("normalize_t") else np.arange(count)
        named = {"sqrt": np.sqrt(t), "exp": np.exp(t)}
        terms = np.stack(
            [named[i] if i in named else t**i for i in config["polynomial_terms"]], axis=1
        )
        solved = np.linalg.lstsq(terms, rest, rcond=None)[0]
        more, coefficients = _floats(solved, config["term_dtype"])
        data, fit = data + more, terms @ coefficients
    at = 0
    for bin in config["residual_bins"]:
        bits, size = bin["element_bits"], bin["num_elements"]
        residual = (rest - fit)[at : at + size]
        largest = max(float(np.abs(residual).max()), 1e-9)
        scale_bytes, scale = _floats(
            np.array([largest / (1 if bits == 1 else 2 ** (bits - 1))]), bin["scale_dtype"]
        )
        low, high = (0, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        codes = np.clip(np.round(residual / scale), low, high) - low
        data += scale_bytes + _bits(codes, bits)
        fit[at : at + size] += (codes * 2 - 1 if bits == 1 else codes + low) * scale
        at += size
    found = np.concatenate([exact, fit])
    return data, np.cumsum(found) if config["delta_encoding"] else found


def _falling(values: Any, exact_k: int) -> np.ndarray:
    """Return [m, k] with no fitted value above the last exact one: they were sorted."""
    found = np.array(values)
    for row in found:
        row[exact_k:] = [min(value, row[exact_k - 1]) for value in row[exact_k:]]
    return found


def write_distillkit(
    folder: Path, source: Source, config: dict[str, Any], *, rows_per_file: int = 3
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Write a compressed set as the sampler does: one entry less than tokens.

    Returns the ids and values that it stands for.
    """
    folder.mkdir(parents=True)
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    width = int(np.ceil(np.log2(config["d"])))
    rows, meant = [], []
    for number, tokens in enumerate(source.tokens):
        ids, values = source.top(number, config["k"])
        packed = [compress_position(each, config) for each in values[:-1]]
        meant.append((ids[:-1], _falling([decoded for _, decoded in packed], config["exact_k"])))
        rows.append(
            {
                "input_ids": tokens.tolist(),
                "compressed_logprobs": [list(data) for data, _ in packed],
                "bytepacked_indices": [list(_bits(each, width)) for each in ids[:-1]],
            }
        )
    lists = pa.list_(pa.list_(pa.uint8()))
    columns: list[Any] = [
        ("input_ids", pa.list_(pa.uint64())),
        ("compressed_logprobs", lists),
        ("bytepacked_indices", lists),
    ]
    schema = pa.schema(columns)
    for file, first in enumerate(range(0, len(rows), rows_per_file)):
        table = pa.Table.from_pylist(rows[first : first + rows_per_file], schema)
        pq.write_table(table, folder / f"data_{file}.parquet")
    return meant


def write_legacy(
    folder: Path, source: Source, config: dict[str, Any]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Write a set of the legacy layout: logits less their mean, ids in words of 64 bits."""
    folder.mkdir(parents=True)
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    bits = int(np.ceil(np.log2(config["vocab_size"])))
    exact_k, count = config["exact_k"], config["k"] - config["exact_k"]
    t = np.arange(1, count + 1, dtype=np.float64)
    terms = np.stack([t**-i for i in range(config["polynomial_degree"] + 1)], axis=1)
    rows, meant = [], []
    for number, tokens in enumerate(source.tokens):
        whole = source.log_probs[number]
        ids, _ = source.top(number, config["k"])
        centred = np.take_along_axis(whole - whole.mean(1, keepdims=True), ids, 1)[:-1]
        solved = np.linalg.lstsq(terms, centred[:, exact_k:].T, rcond=None)[0].T
        solved = solved.astype(np.float32)
        exact = centred[:, :exact_k].astype(np.float16).astype(np.float32)
        fitted = solved.astype(np.float64) @ terms.T
        meant.append((ids[:-1], _falling(np.concatenate([exact, fitted], 1), exact_k)))
        per = 64 // bits
        words = [
            [
                sum(
                    int(number) << (bits * place) for place, number in enumerate(row[at : at + per])
                )
                for at in range(0, len(row), per)
            ]
            for row in ids[:-1]
        ]
        rows.append(
            {
                "input_ids": tokens.tolist(),
                "packed_indices": words,
                "exact_values": exact.tolist(),
                "coeffs": solved.tolist(),
            }
        )
    columns: list[Any] = [
        ("input_ids", pa.list_(pa.uint64())),
        ("packed_indices", pa.list_(pa.list_(pa.uint64()))),
        ("exact_values", pa.list_(pa.list_(pa.float32()))),
        ("coeffs", pa.list_(pa.list_(pa.float32()))),
    ]
    schema = pa.schema(columns)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data_0.parquet")
    return meant


# --- Megatron-LM ----------------------------------------------------------------------------------


def write_megatron(
    folder: Path,
    source: Source,
    *,
    k: int,
    version: int,
    ranks: int = 2,
    context: int = 1,
    micro_batch: int = 2,
    micro_batches: int = 1,
    nucleus: float | None = None,
    packed_bits: str = "none",
    iterations_per_tar: int = 2,
) -> None:
    """Write tars of equally long samples, S + 1 tokens each, in the order of the run."""
    folder.mkdir(parents=True)
    batch = ranks * micro_batch * micro_batches
    members: dict[tuple[int, int], list[tuple[str, int, int, bytes]]] = {}
    for iteration, start in enumerate(range(0, len(source.tokens), batch)):
        for rank in range(ranks):
            for part in range(context):
                parts = []
                for m in range(micro_batches):
                    first = start + (m * ranks + rank) * micro_batch
                    chosen = range(first, first + micro_batch)
                    parts.append(_tensors(source, chosen, k, nucleus, part, context))
                data = _member(parts, version, packed_bits)
                end = start + batch
                name = f"{iteration}.pt.zst" if version == 1 else f"{start}-{end}.pt.zst"
                members.setdefault((part, rank), []).append((name, start, end, data))
    meta = {"hash": "0", "saver": {"k": k}}
    if version == 2:
        meta["saver"]["mbs_save"] = micro_batch  # type: ignore[index]
    for (part, rank), entries in members.items():
        for first in range(0, len(entries), iterations_per_tar):
            chosen_entries = entries[first : first + iterations_per_tar]
            last = first + len(chosen_entries) - 1
            name = (
                f"cp{part}_dp{rank}__{last}.tar"
                if version == 1
                else f"dp{rank}__{chosen_entries[0][1]}-{chosen_entries[-1][2]}.tar"
            )
            with tarfile.open(folder / name, "w") as tar:
                _add(tar, "_meta.json", json.dumps(meta).encode())
                for member, _, _, data in chosen_entries:
                    _add(tar, member, data)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _tensors(
    source: Source, chosen: range, k: int, nucleus: float | None, part: int, context: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values and ids [S, B, K] of some samples, or of one context rank's chunks."""
    tops = [source.top(number, k) for number in chosen]
    ids = torch.tensor(np.stack([ids[:-1] for ids, _ in tops], axis=1))
    values = torch.tensor(np.stack([values[:-1] for _, values in tops], axis=1))
    if nucleus is not None:
        probs = values.exp()
        out = probs.cumsum(-1) - probs >= nucleus
        ids, values = ids.masked_fill(out, -1), values.masked_fill(out, -1e3)
    if context > 1:
        chunks = [torch.tensor_split(each, 2 * context) for each in (values, ids)]
        values, ids = (torch.cat([c[part], c[2 * context - 1 - part]]) for c in chunks)
    return values.half(), ids


def _member(parts: list[tuple[torch.Tensor, torch.Tensor]], version: int, packed: str) -> bytes:
    if version == 2:
        parts = [tuple(torch.cat(each, dim=1) for each in zip(*parts, strict=True))]  # type: ignore
    values = [values for values, _ in parts]
    low = [(ids & 0xFFFF).to(torch.uint16) for _, ids in parts]
    high = [((ids >> 16) & 1).to(torch.bool) for _, ids in parts]
    if packed == "flat":
        high = [torch.from_numpy(np.packbits(each.numpy())) for each in high]
    elif packed == "last":
        high = [torch.from_numpy(np.packbits(each.numpy(), axis=-1)) for each in high]
    found: dict[str, Any] = {"values": values, "indices_low": low, "bit_17": high}
    if version == 2:
        found = {name: each[0] for name, each in found.items()} | {"format_version": 2}
    buffer = io.BytesIO()
    torch.save(found, buffer)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(buffer.getvalue())
    return sink.getvalue().to_pybytes()


def write_samples(path: Path, source: Source) -> None:
    """Write the tokens of a run's samples, one a row."""
    pq.write_table(pa.table({"input_ids": [each.tolist() for each in source.tokens]}), path)


# --- Plain columns --------------------------------------------------------------------------------


def column_rows(source: Source, k: int, entries: str = "all") -> list[dict[str, Any]]:
    """Return records with input_ids, top_ids and top_logprobs.

    entries: `all` (n, each about the next token), `inner` (n - 1), `own` (n, the first empty).
    """
    rows = []
    for number, tokens in enumerate(source.tokens):
        ids, values = (each.tolist() for each in source.top(number, k))
        if entries != "all":
            ids, values = ids[:-1], values[:-1]
        if entries == "own":
            ids, values = [[], *ids], [[], *values]
        rows.append({"input_ids": tokens.tolist(), "top_ids": ids, "top_logprobs": values})
    return rows


def vllm_rows(source: Source, k: int) -> list[dict[str, Any]]:
    """Return records as vLLM's RequestOutput as JSON: None first, the actual token added."""
    rows = []
    for number, tokens in enumerate(source.tokens):
        ids, values = source.top(number, k)
        entries: list[dict[str, Any] | None] = [None]
        for at, label in enumerate(tokens[1:]):
            whole = source.log_probs[number][at]
            entry = {}
            if label not in ids[at]:
                rank = int((whole >= whole[label]).sum())
                entry[str(label)] = {"logprob": whole[label], "rank": rank, "decoded_token": "x"}
            for rank, (token, value) in enumerate(zip(ids[at], values[at], strict=True), start=1):
                entry[str(token)] = {"logprob": value, "rank": rank, "decoded_token": "x"}
            entries.append(entry)
        rows.append({"prompt_token_ids": tokens.tolist(), "prompt_logprobs": entries})
    return rows


def axolotl_rows(source: Source, k: int, answer: int) -> list[dict[str, Any]]:
    """Return records of which the last `answer` tokens have {token, logprob} entries."""
    rows = []
    for number, tokens in enumerate(source.tokens):
        ids, values = source.top(number, k)
        entries = [
            [
                {"token": f"token_id:{token}", "logprob": value, "bytes": None}
                for token, value in zip(ids[at - 1], values[at - 1], strict=True)
            ]
            for at in range(len(tokens) - answer, len(tokens))
        ]
        rows.append({"input_ids": tokens.tolist(), "logprobs": entries})
    return rows


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write records as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write records as Parquet."""
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
