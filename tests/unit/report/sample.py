"""A run folder as the pipeline leaves it, with figures like those of the quickstart.

`sample_run` writes it to a folder; `sample_results` is its `results.json` alone. Losses follow
smooth curves with seeded noise, so that charts look like charts and every number is reproducible.
"""

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdscale.config import dump_config, parse_config
from kdscale.evaluate.results import build_results, write_results
from kdscale.evaluate.schema import (
    CacheAudit,
    CalibrationBin,
    Devices,
    Disagreement,
    DomainMetrics,
    ModelResults,
    Results,
    Samples,
    Speed,
)
from kdscale.store import Store, open_store

CONFIG = """
name: quickstart
output: runs/quickstart
data:
  evaluate: {python-docs: {kind: python-docs}}
teacher:
  model: {architecture: llama, options: {hidden_size: 256}}
  training: {steps: 640, global_batch_size: 8}
cache: {sequences: 1600}
distill:
  student: {model: {architecture: llama, options: {hidden_size: 96}}}
  training: {steps: 200, global_batch_size: 8}
"""
LOSSES = {
    "validation": {"teacher": 3.0512, "student": 3.3821, "baseline": 3.5233},
    "python-docs": {"teacher": 4.4107, "student": 4.6902, "baseline": 4.8018},
}
PARAMETERS = {"teacher": 3_736_832, "student": 418_656, "baseline": 418_656}
TOKENS = {"validation": 30_112, "python-docs": 29_874}


def _calibration(model: str, tokens: int) -> list[CalibrationBin]:
    slack = {"teacher": 0.02, "student": -0.03, "baseline": 0.07}[model]
    bins: list[CalibrationBin] = []
    for index in range(15):
        confidence = (index + 0.5) / 15
        accuracy = min(1.0, max(0.0, confidence - slack * math.sin(math.pi * confidence)))
        bins.append(
            {
                "confidence": confidence,
                "accuracy": accuracy,
                "count": max(1, int(tokens * 0.24 * 0.78**index)),
            }
        )
    return bins


def domain_metrics(model: str, domain: str) -> DomainMetrics:
    """Return the scores of `model` on `domain`."""
    loss, tokens = LOSSES[domain][model], TOKENS[domain]
    calibration = _calibration(model, tokens)
    count = sum(b["count"] for b in calibration)
    metrics: DomainMetrics = {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss / math.log(2) / 2.9,
        "ece": sum(abs(b["accuracy"] - b["confidence"]) * b["count"] for b in calibration) / count,
        "tokens": tokens,
        "calibration": calibration,
    }
    metrics["temperature"] = {"teacher": 1.04, "student": 0.96, "baseline": 1.12}[model]
    metrics["ece_scaled"] = metrics["ece"] / 4
    if model != "teacher":
        metrics["agreement_top1"] = 0.7132 if model == "student" else 0.6477
        metrics["overlap_top10"] = 0.6518 if model == "student" else 0.5902
        metrics["kl_teacher_student"] = 0.4031 if model == "student" else 0.5524
        metrics["kl_student_teacher"] = 0.4417 if model == "student" else 0.6127
    return metrics


def sample_speed(models: Iterable[str]) -> Speed | None:
    """Return the speed of teacher and student, where both are there."""
    if not {"teacher", "student"} <= set(models):
        return None
    return {
        "device": "CPU",
        "dtype": "float32",
        "threads": 1,
        "rows": 8,
        "seq_len": 128,
        "new_tokens": 32,
        "turns": 15,
        "latency_turns": 5,
        "models": {
            "teacher": {
                "bytes": 15_047_424,
                "tokens_per_second": 9_120.0,
                "row_seconds": 0.0142,
                "row_seconds_p90": 0.0181,
                "text_seconds": 0.131,
                "text_seconds_p90": 0.162,
            },
            "student": {
                "bytes": 1_675_928,
                "tokens_per_second": 41_040.0,
                "row_seconds": 0.0031,
                "row_seconds_p90": 0.0042,
                "text_seconds": 0.0524,
                "text_seconds_p90": 0.0611,
                "times_teacher": 4.5,
                "times_teacher_interval": [4.31, 4.68],
            },
        },
    }


def sample_texts(models: Iterable[str]) -> Samples | None:
    """Return a prompt with spaces and markup in it, and each model's continuation."""
    if "student" not in set(models):
        return None
    return {
        "domain": "validation",
        "temperature": None,
        "drawn_temperature": 1.0,
        "prompt_tokens": 8,
        "new_tokens": 12,
        "texts": [
            {
                "prompt": "def less(a, b):\n    if a <",
                "truth": " b:\n        return True",
                "models": {model: f" <b>{model}</b>" for model in models},
                "drawn": {model: f" {model}\n  drawn" for model in models},
            }
        ],
    }


AUDIT: CacheAudit = {
    "sequences": 8,
    "positions": 1_016,
    "draws": 4,
    "squared_bias": 2.1e-5,
    "squared_bias_error": 1.8e-5,
    "variance": 8.25e-3,
    "kept_mass": 0.6243,
    "distinct_ids": 11.7,
    "loss_bias": -0.0021,
    "loss_bias_error": 0.0034,
    "kl": None,
    "mean_positions": 960,
    "mean_error": 0.0312,
    "mean_cosine": 0.9995,
    "ids_in_common": 1.0,
    "seconds": 1.84,
}
DEVICES: Devices = {
    "name": "H100",
    "kind": "gpu",
    "devices": {"prepare": 1, "teacher": 2, "cache": 2, "distill": 2, "evaluate": 2},
    "price_hour": 6.88,
    "price_source": "AWS p5.48xlarge",
    "watts": 700.0,
    "watts_source": "NVIDIA's data sheet",
    "planned": {
        "prepare": {"seconds": 20.0, "device_hours": 20 / 3600},
        "teacher": {"seconds": 200.0, "device_hours": 400 / 3600},
        "cache": {"seconds": 50.0, "device_hours": 100 / 3600},
        "distill": {"seconds": 100.0, "device_hours": 200 / 3600},
        "evaluate": {"seconds": 10.0, "device_hours": 20 / 3600},
    },
    "assumptions": ["Text: known.", "Speed: assumed."],
}


def sample_disagreements(models: Iterable[str]) -> list[Disagreement] | None:
    """Return a position with markup in its text, where there are a teacher and a student."""
    if not {"teacher", "student"} <= set(models):
        return None
    return [
        {
            "domain": "validation",
            "sequence": 1204,
            "position": 77,
            "before": "    for <b>line</b> in",
            "label": " lines",
            "kl": 6.125,
            "teacher": [
                {"text": " lines", "probability": 0.91},
                {"text": "\n", "probability": 0.02},
            ],
            "student": [{"text": " range", "probability": 0.72}],
        }
    ]


def sample_results(
    models: Iterable[str] = ("teacher", "student", "baseline"),
    run: str = "quickstart",
    output: str = "runs/quickstart",
) -> Results:
    """Return results with these models on two domains."""
    found: dict[str, ModelResults] = {
        model: {
            "parameters": PARAMETERS[model],
            "domains": {domain: domain_metrics(model, domain) for domain in LOSSES},
        }
        for model in models
    }
    return build_results(
        run=run,
        output=output,
        models=found,
        context=16,
        speed=sample_speed(found),
        samples=sample_texts(found),
        cache_audit=AUDIT if {"teacher", "student"} <= found.keys() else None,
        disagreements=sample_disagreements(found),
        devices=DEVICES,
        evaluated={
            "tokenizer": "17f1",
            "teacher": "3922",
            "sets": {domain: f"rows of {domain}" for domain in LOSSES},
        },
        cache={
            "bytes_per_token": 15.23,
            "bytes": 3_214_336,
            "rows": 1600,
            "targets": 202_311,
            "codec": {"kind": "varopt", "k": 12, "head": 4, "head_bits": 8},
            "units": 8,
            "blocks": 32,
        },
        seconds={
            "prepare": 21.4,
            "teacher": 231.0,
            "cache": 44.9,
            "distill": 118.2,
            "evaluate": 31.7,
        },
        seed=0,
        versions={"python": "3.11.9", "kdscale": "0.1.0", "torch": "2.9.1", "ray": "2.51.1"},
        hardware={
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "memory_bytes": 16 * 2**30,
            "gpus": [],
        },
        config_fingerprint="9f0c2ab417de55aa",
        gap_intervals={"validation": [0.274, 0.323]},
    )


CONFUSIONS = {
    "teacher": [[96, 2, 2], [1, 98, 1], [0, 3, 97]],
    "student": [[93, 4, 3], [2, 96, 2], [1, 4, 95]],
    "baseline": [[84, 9, 7], [6, 88, 6], [5, 8, 87]],
}


def class_results() -> Results:
    """Return results of classifiers of three classes."""
    results = sample_results(run="bbc-classify")
    results["task"] = "sequence-classification"
    results.pop("context")
    results["classes"] = ["business", "entertainment and the arts", "tech"]
    for model, found in results["models"].items():
        confusion = CONFUSIONS[model]
        right = sum(confusion[i][i] for i in range(3)) / sum(map(sum, confusion))
        for metrics in found["domains"].values():
            metrics["confusion"], metrics["accuracy"] = confusion, right
            metrics["f1_macro"] = metrics["precision_macro"] = metrics["recall_macro"] = right
            metrics["mcc"], metrics["auroc"] = 1.5 * right - 0.5, 0.99
            metrics["intervals"] = {"f1_macro": [right - 0.02, right + 0.015]}
    return results


def _training_lines(steps: int, start: float, end: float, seed: int) -> list[dict[str, Any]]:
    noise = random.Random(seed)
    lines = []
    for step in range(10, steps + 1, 10):
        loss = end + (start - end) * math.exp(-7 * step / steps)
        line = {
            "step": step,
            "tokens": step * 1016,
            "time": 1_700_000_000 + step,
            "train/loss": loss + noise.gauss(0, 0.06),
            "train/ce_loss": loss + noise.gauss(0, 0.06),
            "lr": 3e-3 * (1 - step / steps) + 3e-4,
            "train/gradient_norm": 0.4 + 2 / step,
            "tokens_per_second": 3500 + noise.gauss(0, 120),
            "data_wait_share": 0.012,
        }
        if step % 20 == 0:
            line["validation/loss"] = loss + 0.02
        lines.append(line)
    return lines


def _distill_lines(steps: int) -> list[dict[str, Any]]:
    lines = _training_lines(steps, 7.6, 3.37, seed=1)
    for line in lines:
        share = min(1.0, math.sqrt(0.0625 + 0.9375 * line["step"] / (steps / 4)))
        line["train/kl"] = line["train/ce_loss"] - 1.9
        line["curriculum/competence"] = share
        line["curriculum/pool_size"] = int(1600 * share)
        line["curriculum/mean_difficulty"] = 1.6 + 0.9 * share + 0.05 * math.sin(line["step"])
        line["curriculum/unique_seen_share"] = 1 - math.exp(-line["step"] * 8 / 1600)
    return lines


def sample_metrics() -> dict[str, list[dict[str, Any]]]:
    """Return the lines of `metrics/<stage>.jsonl` by stage."""
    return {
        "teacher": _training_lines(640, 7.6, 3.04, seed=0),
        "cache": [
            {"step": step, "tokens": step * 25_400, "time": 0.0, "tokens_per_second": 5120.0}
            for step in range(1, 9)
        ],
        "distill": _distill_lines(200),
        "baseline": _training_lines(200, 7.6, 3.51, seed=2),
    }


def sample_run(folder: Path, results: Results | None = None) -> Store:
    """Write a whole run to `folder`: results (the sample's when not given), metrics, config."""
    store = open_store(str(folder))
    write_results(store, results or sample_results())
    store.put("config.resolved.yaml", dump_config(parse_config(CONFIG)).encode())
    for stage, lines in sample_metrics().items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        store.put(f"metrics/{stage}.jsonl", text.encode())
    return store


def old_results() -> Results:
    """Return results as they were before audits, disagreements and devices were in them."""
    found = sample_results()
    for name in ("cache_audit", "disagreements", "devices", "evaluated"):
        del found[name]  # type: ignore[misc]
    del found["samples"]["drawn_temperature"]
    for text in found["samples"]["texts"]:
        del text["drawn"]
    return found
