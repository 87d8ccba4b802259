"""A small audit of the run's cache: its targets beside the teacher's whole distributions.

The evaluation has the teacher loaded, so that a few sequences of the cache cost seconds. All random
numbers come from the sequences' own ids, as in a capture: nothing else in the evaluation changes.
"""

import time

import numpy as np
import torch

from kdscale.cache.fidelity.gradient import make_truth
from kdscale.cache.fidelity.measure import CHUNK, Measure
from kdscale.cache.fidelity.positions import Proof, draw_positions, run_teacher
from kdscale.cache.read.reader import CacheReader
from kdscale.config.evaluate import AuditConfig
from kdscale.distributed.rank import Rank
from kdscale.evaluate.schema import CacheAudit
from kdscale.store import Store

_WIDEST = 64 * CHUNK


@torch.no_grad()
def audit_cache(
    store: Store, model: torch.nn.Module, teacher: str, config: AuditConfig, worker: Rank
) -> CacheAudit | None:
    """Compare the cache in `store` with its teacher `model`, whose weights have the digest given.

    Every rank runs the same sequences, because a sharded teacher is gathered by all together. None
    for a cache of another teacher, of a classifier, whose targets are whole distributions, or with
    fewer than two targets in the sequences looked at.
    """
    started = time.perf_counter()
    reader = CacheReader(store)
    identity = reader.identity
    if identity["teacher"] != teacher or identity.get("classes"):
        return None
    count = min(len(reader), max(2, -(-config.positions // reader.seq_len)))
    cached = reader.read(np.unique(np.linspace(0, len(reader) - 1, count).astype(np.int64)))
    positions = int(cached.rows.loss_mask.sum())
    if positions < 2:
        return None
    widest = min(_WIDEST, positions // CHUNK * CHUNK) or positions
    measure, proof = Measure((widest,)), Proof(reader.codec, identity)
    vocab_size, temperature = int(identity["vocab_size"]), float(identity["temperature"])
    codec, streams = reader.codec, reader.codec.streams
    seeds = [int(identity["seed"]) + draw for draw in range(config.draws if streams else 1)]
    rows = run_teacher(model, cached, vocab_size, worker.device)
    for chunk in draw_positions(proof.check(rows), seeds, streams):
        drawn = [
            codec.encode(chunk.logits, noise, temperature=temperature).payload
            for noise in chunk.noise
        ]
        truth = make_truth(chunk.logits[:, :vocab_size], temperature)
        measure.add(truth, codec.decode(torch.stack(drawn)))
        worker.beat("the audit of the cache")
    found = measure.result()
    widest_mean = found.widest
    return {
        "sequences": len(cached),
        "positions": found.positions,
        "draws": found.draws,
        "squared_bias": found.squared_bias,
        "squared_bias_error": found.squared_bias_error,
        "variance": found.variance,
        "kept_mass": found.kept_mass,
        "distinct_ids": found.distinct_ids,
        "loss_bias": found.loss_bias,
        "loss_bias_error": found.loss_bias_error,
        "kl": found.kl,
        "mean_positions": widest_mean.positions,
        "mean_error": widest_mean.error,
        "mean_cosine": widest_mean.cosine,
        "ids_in_common": proof.result()["ids_in_common"],
        "seconds": time.perf_counter() - started,
    }
