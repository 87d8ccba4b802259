"""The evaluate stage: all models over the held-out data, and `results.json`."""

import json
from typing import Any

from kdscale.cache.maintain.inspect import inspect
from kdscale.config import RunConfig, fingerprint
from kdscale.distill.alignment.student_data import AlignedPrepared
from kdscale.errors import KdscaleError
from kdscale.evaluate.external_models import external_references
from kdscale.evaluate.results import RESULTS_KEY, build_results, read_results, write_results
from kdscale.evaluate.schema import Evaluated, HarnessTask
from kdscale.evaluate.worker import MEASURED_KEY, EvaluateJob
from kdscale.run.artifacts import RunArtifacts
from kdscale.run.devices import describe_devices
from kdscale.run.record import RunRecord
from kdscale.run.stages.base import Stage, StageContext


def _is_complete(run: RunArtifacts, record: RunRecord) -> bool:
    if not run.output.exists(RESULTS_KEY):
        return False
    return read_results(run.output)["config_fingerprint"] == run.evaluate_fingerprint


def _make(context: StageContext) -> list[str]:
    """Score teacher, student, baseline, the student before training and other models."""
    run = context.run
    config = run.config
    tokenizer = run.student_tokenizer
    own = None if tokenizer is None else AlignedPrepared(run.prepared, tokenizer)
    others, aligned = external_references(config, run.prepared, own)
    job = EvaluateJob(
        config=config,
        output=run.output,
        prepared=run.prepared_store,
        teacher=run.teacher_if_present(),
        models={**{name: run.student(name) for name in run.evaluated_names}, **others},
        cache=run.cache_stores[0][0],
        tokenizer=tokenizer,
        aligned=frozenset() if own is None else aligned | set(run.evaluated_names),
    )
    context.groups.run(job, config.evaluate.workers, context.progress)
    measured = json.loads(run.output.get(MEASURED_KEY))
    facts = inspect(run.cache_stores[0][0])
    results = build_results(
        run=config.name,
        output=run.output.url,
        cache={**facts, "bytes_per_token": _bytes_per_target(config, facts)},
        seconds=context.record.seconds(),
        seed=config.seed,
        config_fingerprint=run.evaluate_fingerprint,
        evaluated=_evaluated(run),
        devices=describe_devices(config, run.output, measured["hardware"]["gpus"]),
        **measured,
    )
    if scores := _lm_eval_scores(run):
        results["lm_eval"] = scores
    if chat := run.prepared.chat_summary:
        results["chat"] = chat
    write_results(run.output, results)
    gaps = results["gap_recovered"].items()
    return [f"gap recovered on {d}: {'n/a' if g is None else f'{g:.1%}'}" for d, g in gaps]


def _evaluated(run: RunArtifacts) -> Evaluated:
    """Return what tells evaluations apart whose figures cannot be compared."""
    manifest, teacher = run.prepared.manifest, run.teacher_if_present()
    return {
        "tokenizer": manifest["tokenizer"]["sha256"],
        "teacher": None if teacher is None else teacher.digest,
        "sets": {
            name: fingerprint([shard["xxh3"] for shard in manifest["splits"][name]["shards"]])
            for name in run.prepared.evaluation_sets
        },
    }


def _lm_eval_scores(run: RunArtifacts) -> dict[str, HarnessTask]:
    """Return the scores that `kdscale lm-eval` has found before on these very models."""
    try:
        before = read_results(run.output)
    except KdscaleError:
        return {}
    same = before["config_fingerprint"] == run.evaluate_fingerprint
    return before.get("lm_eval", {}) if same else {}


def _bytes_per_target(config: RunConfig, facts: dict[str, Any]) -> float:
    """Return the stored bytes of a target.

    Causal language models have one at nearly every token; other tasks only where a label or a mask
    is.
    """
    if config.task == "causal-lm":
        return float(facts["bytes_per_position"])
    return float(facts["bytes"] / max(1, facts["targets"]))


STAGE = Stage(
    name="evaluate",
    fingerprint=lambda run: run.evaluate_fingerprint,
    is_complete=_is_complete,
    make=_make,
    repeats_alone=True,
)
