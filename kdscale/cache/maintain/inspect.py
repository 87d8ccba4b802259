"""Inspection of a cache: its facts, and single positions for a person to read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kdscale.cache.codecs import open_codec
from kdscale.cache.commit.manifest import load_manifest
from kdscale.cache.format.records import Generation, ObjectReference
from kdscale.cache.read.reader import CacheReader
from kdscale.store import Store
from kdscale.types import DenseTargets, SparseTargets, labels_of

_SHOWN_TARGETS = 8
_SHOWN_CONTEXT = 32


def inspect(store: Store, version: int | None = None) -> dict[str, Any]:
    """Return the facts of a published cache, from its manifest alone.

    Sizes are in bytes; `bytes` is that of all that a reader needs. A position is one token of a
    sequence, target or not. KdscaleError where there is no such manifest.
    """
    manifest = load_manifest(store, version)
    positions = manifest.rows * int(manifest.identity["seq_len"])
    prior_bytes = sum(prior.length for prior in priors(manifest.generations).values())
    stored = manifest.shards.nbytes + prior_bytes + manifest.record.shards.length
    return {
        "url": str(store),
        "version": manifest.version,
        "created": manifest.record.created,
        "fingerprint": manifest.record.fingerprint,
        "identity": manifest.identity,
        "codec": manifest.identity["codec"],
        "rows": manifest.rows,
        "positions": positions,
        "targets": manifest.shards.targets,
        "generations": len(manifest.generations),
        "shards": len(manifest.shards),
        "chunks": sum(map(_chunks, manifest.generations)),
        "bytes": stored,
        "prior_bytes": prior_bytes,
        "payload_bytes_per_position": open_codec(manifest.identity["codec"]).bytes_per_position,
        "bytes_per_position": stored / positions,
    }


def priors(generations: tuple[Generation, ...]) -> dict[str, ObjectReference]:
    """Return the priors of all generations by key; generations of equal text share one."""
    return {s.prior_key: s.prior for s in generations if s.prior_key and s.prior}


def sample(
    reader: CacheReader, decode: Callable[[list[int]], str], count: int
) -> list[dict[str, Any]]:
    """`count` positions from rows spread over the cache, for a person to read.

    decode: a tokenizer's ids -> text. Each position gives its row and position, the text before it
    (of a row to be classified, its text), the label there, and the most probable targets with their
    probabilities. Labels are tokens, or the names of classes.
    """
    shown = []
    classes = reader.identity.get("classes")
    name = classes.__getitem__ if classes else lambda token: decode([token])
    for index in np.linspace(0, len(reader) - 1, min(count, len(reader))).astype(np.int64):
        cached = reader.read(np.array([index]))
        ids = cached.rows.input_ids[0]
        targets = np.flatnonzero(cached.rows.loss_mask[0])
        if len(targets):
            at = int(targets[len(targets) // 2])
            end = reader.seq_len if classes else at + 1
            label = int(labels_of(cached.rows)[0, at])
            payload = torch.from_numpy(cached.payload[0, at])
            shown.append(
                {
                    "row": int(index),
                    "position": at,
                    "context": decode(ids[max(0, end - _SHOWN_CONTEXT) : end].tolist()),
                    "token": name(label) if label >= 0 else "(no label)",
                    "targets": [
                        (name(token), probability)
                        for token, probability in _most_probable(reader.codec.decode(payload))
                    ],
                }
            )
    return shown


def _chunks(generation: Generation) -> int:
    """Chunks of all shards. All shards but the last are of one size."""
    per_shard = -(-generation.sequences_per_shard // generation.sequences_per_chunk)
    last = -(-len(generation.shards[-1]) // generation.sequences_per_chunk)
    return per_shard * (len(generation.shards) - 1) + last


def _most_probable(targets: SparseTargets | DenseTargets) -> list[tuple[int, float]]:
    """Ids and probabilities of one position, an id once, from the most probable down."""
    if isinstance(targets, DenseTargets):
        top = targets.log_probs.exp().topk(min(_SHOWN_TARGETS, len(targets.log_probs)))
        return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    summed: dict[int, float] = {}
    for token, probability in zip(targets.ids.tolist(), targets.probs.tolist(), strict=True):
        summed[token] = summed.get(token, 0.0) + probability
    return sorted(summed.items(), key=lambda pair: -pair[1])[:_SHOWN_TARGETS]
