"""The evaluate stage on a worker: all models over every held-out domain.

The only place where teacher and students meet: agreement and KL compare them position by position.
The teacher may be sharded, so all ranks run equally many forwards; others are whole on each rank.
"""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kdscale.config import RunConfig
from kdscale.config.training import AttentionChoice, ZeroConfig
from kdscale.data.rows.prepared import Prepared, open_prepared
from kdscale.distill.alignment.student_data import AlignedPrepared, StudentTokenizer
from kdscale.distributed.rank import Rank, current_rank
from kdscale.evaluate.alignment import describe_alignment
from kdscale.evaluate.cache_audit import audit_cache
from kdscale.evaluate.disagreements import KEPT
from kdscale.evaluate.domain import DomainScores, summarise
from kdscale.evaluate.results import environment
from kdscale.evaluate.samples import write_samples
from kdscale.evaluate.schema import CacheAudit, Disagreement
from kdscale.evaluate.single_device import load_models
from kdscale.evaluate.speed import measure_speed
from kdscale.evaluate.temperature import fit_temperatures
from kdscale.models.attention import set_attention
from kdscale.models.forward import target_logits, unwrapped
from kdscale.models.hf_folder import ModelReference
from kdscale.models.release import release
from kdscale.models.sequence_check import check_sequences
from kdscale.models.sharded import load_teacher
from kdscale.store import Store
from kdscale.tracking.wandb_run import open_wandb_run
from kdscale.train.batches import sequence_spec

MEASURED_KEY = "evaluation.json"


@dataclass(frozen=True)
class EvaluateJob:
    """The inputs of an evaluation worker.

    `models` are those besides the teacher by name: student, baseline, the student before training,
    and the config's. Without a teacher at hand nothing is compared with it, and `cache` is not
    audited. Those in `aligned` read
    the tokens of `tokenizer`, the student's own, the others the teacher's.
    """

    config: RunConfig
    output: Store
    prepared: Store
    teacher: ModelReference | None
    models: dict[str, ModelReference]
    cache: Store | None = None
    tokenizer: StudentTokenizer | None = None
    aligned: frozenset[str] = frozenset()

    def data(self) -> dict[str, Prepared]:
        """Return the data that each model reads, by its name."""
        prepared = open_prepared(self.prepared)
        own = prepared if self.tokenizer is None else AlignedPrepared(prepared, self.tokenizer)
        names = ("teacher", *self.models)
        return {name: own if name in self.aligned else prepared for name in names}

    @property
    def references(self) -> dict[str, ModelReference]:
        """All models by name, the teacher first."""
        return self.models if self.teacher is None else {"teacher": self.teacher, **self.models}

    def attention(self, name: str) -> AttentionChoice:
        """Return the kernel of a model's attention: the config's, of its own models."""
        if name == "teacher":
            return self.config.teacher.attention
        of_student = name in ("student", "baseline", "before")
        return self.config.distill.student.attention if of_student else "auto"

    def run(self) -> None:
        """Evaluate on this rank."""
        evaluate(self)


def evaluate(spec: EvaluateJob) -> None:
    """Score all models on this rank, with all others; rank 0 writes `evaluation.json`.

    It holds {"models": {name: ModelResults}, "gap_intervals", "task", "classes", "versions",
    "hardware"}, "context" of causal language models, "alignment" of a student with its own
    tokenizer, "cache_audit" of a cache of this teacher, and "speed", "samples" and "disagreements"
    if the config wants them.
    """
    worker = current_rank()
    config = spec.config.evaluate
    data = spec.data()
    prepared = data["teacher"]
    sharded, whole = ZeroConfig.for_teacher(config.teacher_sharding), ZeroConfig(stage=0)
    models: dict[str, torch.nn.Module] = {}
    for name, reference in spec.references.items():
        zero = sharded if name == "teacher" else whole
        model = load_teacher(reference.local(), worker, zero, reference.revision)
        choice, packs = spec.attention(name), spec.config.packs
        set_attention(unwrapped(model), choice, worker.device, packs=packs)
        models[name] = model
    for name, model in models.items():
        kind = sequence_spec(spec.config, data[name], config.micro_batch_size)
        check_sequences(model, partial(target_logits, model, vocab_size=kind.outputs), kind)
    temperatures: dict[str, float | None] = dict.fromkeys(models)
    if not prepared.classes:
        # A classifier's logits are kept, and its temperature is fitted afterwards.
        for own in dict.fromkeys(data.values()):
            readers = {name: model for name, model in models.items() if data[name] is own}
            fitted = fit_temperatures(readers, own, worker, config.micro_batch_size)
            temperatures.update(fitted)
    domains = prepared.evaluation_sets
    found: dict[str, DomainScores] = {}
    for index, domain in enumerate(domains):
        worker.raise_if_stopping()
        scores = DomainScores(temperatures, data, domain, worker)
        scores.measure(models, worker, config.micro_batch_size)
        found[domain] = scores
        if worker.rank == 0:
            worker.report(index + 1, len(domains), note=domain)
    audited = _audit(spec, models, worker)
    # Room for whole models. A sharded one is left by all ranks together.
    while models:
        release(models.popitem()[1])
    if worker.rank == 0:
        measured = summarise(found, spec.references)
        measured |= _side_by_side(spec, data, worker)
        if audited is not None:
            measured["cache_audit"] = audited
        if config.samples is not None:  # the positions have held-out text, as samples do
            measured["disagreements"] = _disagreements(found, prepared)
        if isinstance(own := data["student"], AlignedPrepared):
            measured["alignment"] = describe_alignment(own)
        measured |= {"task": spec.config.task, "classes": prepared.classes}
        if spec.config.task == "causal-lm":
            measured["context"] = spec.config.data.evaluation_overlap
        measured["versions"], measured["hardware"] = environment()
        spec.output.put(MEASURED_KEY, json.dumps(measured).encode())
        _track(spec, measured)
    worker.barrier()


def _audit(
    spec: EvaluateJob, models: dict[str, torch.nn.Module], worker: Rank
) -> CacheAudit | None:
    """Audit the cache, where the config wants it and the teacher is at hand. Collective."""
    config = spec.config.evaluate.audit
    if config is None or spec.cache is None or spec.teacher is None:
        return None
    return audit_cache(spec.cache, models["teacher"], spec.teacher.digest, config, worker)


def _disagreements(found: dict[str, DomainScores], prepared: Prepared) -> list[Disagreement]:
    """Return the positions of all evaluation sets where student and teacher disagree most."""
    described = [
        each
        for domain, scores in found.items()
        for each in scores.disagreements.describe(domain, prepared, scores.order)
    ]
    return sorted(described, key=lambda each: each["kl"], reverse=True)[:KEPT]


def _side_by_side(spec: EvaluateJob, data: dict[str, Prepared], worker: Rank) -> dict[str, Any]:
    """Return speed and samples, as far as they are wanted."""
    config = spec.config.evaluate
    writes = config.samples if spec.config.task == "causal-lm" else None
    if config.speed is None and writes is None:
        return {}
    references = spec.references
    models = load_models(references, worker)
    found: dict[str, Any] = {}
    if config.speed is not None:
        # Baseline and student before training have the student's architecture.
        timed = {n: model for n, model in models.items() if n not in ("baseline", "before")}
        found["speed"] = measure_speed(timed, references, data, config.speed, worker)
    if writes is not None:
        found["samples"] = write_samples(models, data, writes, worker, spec.config.seed)
    return found


def _track(spec: EvaluateJob, measured: dict[str, Any]) -> None:
    """Log the figures of all models, and their samples, to W&B."""
    config = spec.config
    gallery = open_wandb_run(config, "evaluate", spec.output)
    gallery.summary(
        {
            f"{domain}/{figure}/{model}": value
            for model, results in measured["models"].items()
            for domain, figures in results["domains"].items()
            for figure, value in figures.items()
            if isinstance(value, int | float)
        }
    )
    if samples := measured.get("samples"):
        names = list(samples["texts"][0]["models"]) if samples["texts"] else []
        ways = ("models", "drawn")
        rows = [
            [text["prompt"], text["truth"], *(text[how][name] for how in ways for name in names)]
            for text in samples["texts"]
        ]
        drawn = [f"{name}, drawn" for name in names]
        gallery.log_table("samples", ["prompt", "document", *names, *drawn], rows)
    gallery.finish()
