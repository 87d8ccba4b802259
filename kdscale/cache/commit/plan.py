"""Work shards, fixed before the run.

A shard is a range of rows of a generation. It never depends on workers or on the chunks that Ray
happens to form, so a run with other workers continues what an earlier one left. The first plan
opens a cache; each later one appends a generation to it.
"""

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import xxhash

from kdscale.cache.codecs import open_codec
from kdscale.cache.format.checked_read import read_object
from kdscale.cache.format.packing import Packing, packable
from kdscale.cache.format.prior import Prior, decode_prior, encode_prior
from kdscale.cache.format.records import (
    Generation,
    ObjectReference,
    PlanRecord,
    read_record,
    record_bytes,
)
from kdscale.cache.format.shard_file import Layout, object_digest
from kdscale.cache.spec import FORMAT, Identity, check_cache_spec, has_labels
from kdscale.errors import KdscaleError
from kdscale.store import PutIfAbsent, Store

_FOLDER = "plans/"


def plan_key(number: int) -> str:
    """Return where the plan of a generation lies, relative to the cache."""
    return f"{_FOLDER}{number:04d}.json"


def selection_hash(*numbers: int) -> str:
    """Return a name for wanted rows of some data, from the numbers that select them."""
    return xxhash.xxh3_128_hexdigest(np.array(numbers, "<i8").tobytes())


def load_plans(store: Store) -> list[PlanRecord]:
    """Return the plans of all generations, in order; none where nothing was captured yet.

    KdscaleError where one is damaged, is missing, or lies in the place of another.
    """
    plans: list[PlanRecord] = []
    shards = rows = 0
    keys = store.list(_FOLDER)
    for number in range(len(keys)):
        if plan_key(number) not in keys:
            raise KdscaleError(
                f"{store} has plans of later generations, but {plan_key(number)} is missing.",
                f"`kdscale cache repair {store}` writes it again, once a manifest has it.",
            )
        plan = read_record(PlanRecord, store, plan_key(number))
        generation = plan.generation
        if (generation.first_shard, generation.first_row) != (shards, rows):
            raise KdscaleError(
                f"{store}/{plan_key(number)} starts at shard {generation.first_shard} and row "
                f"{generation.first_row}; the plans before it end at {shards} and {rows}.",
                f"`kdscale cache repair {store}` writes it again, once a manifest has it.",
            )
        plans.append(plan)
        shards, rows = shards + len(generation.shards), rows + generation.rows
    return plans


def find_generation(store: Store, data: str, request: str) -> tuple[int, Generation] | None:
    """Return the generation planned for `request` of `data`, and how many come before it."""
    for number, plan in enumerate(load_plans(store)):
        if (plan.generation.data, plan.generation.request) == (data, request):
            return number, plan.generation
    return None


def create_or_load_plan(
    store: Store,
    identity: Identity,
    *,
    data: str,
    request: str,
    rows: int,
    sequences_per_shard: int,
    sequences_per_chunk: int,
    count_prior: Callable[[], Prior] | None = None,
    put_if_absent: PutIfAbsent | None = None,
) -> Generation:
    """Return the generation for `rows` rows of `data`, named by `request` (`selection_hash`).

    Where an earlier run planned the same request, its generation is returned, with its sizes
    and prior. Otherwise a new generation is planned after the existing ones; its payload is
    packed where `count_prior` is given. Safe to call from several processes at once;
    `put_if_absent` replaces the store's own where that cannot be relied on. KdscaleError where
    there are no rows, or where the cache has another identity.
    """
    while True:
        plans = load_plans(store)
        for plan in plans:
            check_cache_spec(plan.identity, dict.fromkeys(plan.identity) | identity)
            if (plan.generation.data, plan.generation.request) == (data, request):
                return plan.generation
        if min(rows, sequences_per_shard, sequences_per_chunk) < 1:
            raise KdscaleError(
                f"There is nothing to capture: {rows} rows in shards of {sequences_per_shard} and "
                f"chunks of {sequences_per_chunk}.",
                "Give a corpus with more text, shorter rows (data.seq_len), or a larger shard.",
            )
        before = [plan.generation for plan in plans]
        generation = Generation(
            first_shard=sum(len(earlier.shards) for earlier in before),
            first_row=sum(earlier.rows for earlier in before),
            rows=rows,
            sequences_per_shard=sequences_per_shard,
            sequences_per_chunk=sequences_per_chunk,
            data=data,
            request=request,
            prior=_stored_prior(store, count_prior()) if count_prior else None,
        )
        record = PlanRecord(
            format=FORMAT,
            identity=identity,
            generation=generation,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        put = put_if_absent or store.put_if_absent
        if put(plan_key(len(plans)), record_bytes(record)):
            return generation


def open_layout(store: Store, identity: Identity, generation: Generation) -> Layout:
    """Return the layout of a generation's chunks; loads its prior."""
    codec = open_codec(identity["codec"])
    packing = None
    if generation.prior is not None and generation.prior_key is not None:
        assert packable(codec)
        data = read_object(store, generation.prior_key, generation.prior.digest)
        packing = Packing(codec, decode_prior(data))
    length = int(identity["seq_len"])
    return Layout(length, codec.bytes_per_position, packing, has_labels(identity))


def _stored_prior(store: Store, prior: Prior) -> ObjectReference:
    """Store the prior and return its name."""
    data = encode_prior(prior)
    reference = ObjectReference(digest=object_digest(data), length=len(data))
    store.put(f"prior/{reference.digest[:16]}.arrow", data)
    return reference
