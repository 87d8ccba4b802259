"""Writing and reading of `results.json`; its schema is in schema.py.

The report, the model card and every comparison between runs read this file and nothing else, so it
carries its provenance: seed, versions, hardware, config fingerprint. pydantic checks it on the way
out and on the way in. Nothing here imports torch: the report must open on a laptop that has none.

Standard JSON has no NaN or infinity. A diverged model has them, and null would hide that, so they
are written as the strings "NaN", "Infinity" and "-Infinity", which `read_results` turns back into
numbers.
"""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from kdscale.errors import KdscaleError
from kdscale.evaluate.schema import (
    Alignment,
    CacheAudit,
    Devices,
    Disagreement,
    Evaluated,
    Interval,
    ModelResults,
    Results,
    Samples,
    Speed,
)
from kdscale.store import Store
from kdscale.store.redact import redact

RESULTS_KEY = "results.json"
SCHEMA_VERSION: Literal[2] = 2

PACKAGES = (
    "kdscale",
    "torch",
    "ray",
    "deepspeed",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
    "pyarrow",
    "wandb",
)


_ADAPTER: TypeAdapter[Results] = TypeAdapter(Results)


def gap_recovered(teacher: float, student: float, baseline: float | None) -> float | None:
    """Return (baseline - student) / (baseline - teacher), of losses: 1 is the teacher.

    None without a baseline, or where the baseline is not worse than the teacher: then there is no
    gap, and the quotient would mean nothing. Non-finite losses have no gap either.
    """
    if baseline is None or not all(map(math.isfinite, (teacher, student, baseline))):
        return None
    gap = baseline - teacher
    return (baseline - student) / gap if gap > 0 else None


def build_results(
    *,
    run: str,
    output: str,
    models: dict[str, ModelResults],
    cache: Mapping[str, Any] | None,
    seconds: Mapping[str, float],
    seed: int,
    versions: Mapping[str, str],
    hardware: Mapping[str, Any],
    config_fingerprint: str,
    task: str = "causal-lm",
    classes: Sequence[str] = (),
    context: int | None = None,
    alignment: Alignment | None = None,
    gap_intervals: Mapping[str, Interval] | None = None,
    speed: Speed | None = None,
    samples: Samples | None = None,
    cache_audit: CacheAudit | None = None,
    disagreements: list[Disagreement] | None = None,
    evaluated: Evaluated | None = None,
    devices: Devices | None = None,
) -> Results:
    """Return the content of `results.json`, with the gap of every domain of the student.

    `cache` holds the CacheFacts, and may hold more. `versions` and `hardware` are those of the
    worker that evaluated: see `environment`. Raises pydantic's ValidationError where an argument
    does not fit the schema.
    """
    measured = {
        "context": context,
        "alignment": alignment,
        "speed": speed,
        "samples": samples,
        "cache_audit": cache_audit,
        "disagreements": disagreements,
        "evaluated": evaluated,
        "devices": devices,
    }
    return _ADAPTER.validate_python(
        {name: value for name, value in measured.items() if value is not None}
        | {
            "schema_version": SCHEMA_VERSION,
            "run": run,
            "output": redact(output),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "task": task,
            "models": models,
            "gap_recovered": _gaps(models, common_loss(alignment)),
            "gap_intervals": dict(gap_intervals or {}),
            "classes": list(classes),
            "cache": cache,
            "seconds": dict(seconds),
            "seed": seed,
            "versions": dict(versions),
            "hardware": dict(hardware),
            "config_fingerprint": config_fingerprint,
        }
    )


def common_loss(alignment: object | None) -> Literal["loss", "bits_per_byte"]:
    """Return the figure in which models are compared.

    The loss a token, and bits a byte where an `alignment` says that their tokens differ.
    """
    return "loss" if alignment is None else "bits_per_byte"


def _gaps(
    models: Mapping[str, ModelResults], figure: Literal["loss", "bits_per_byte"]
) -> dict[str, float | None]:
    if "teacher" not in models or "student" not in models:
        return {}
    teacher, student = models["teacher"]["domains"], models["student"]["domains"]
    baseline = models["baseline"]["domains"] if "baseline" in models else {}
    return {
        domain: gap_recovered(
            _known(teacher[domain][figure]),
            _known(student[domain][figure]),
            _known(baseline[domain][figure]) if domain in baseline else None,
        )
        for domain in student
        if domain in teacher
    }


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def write_results(store: Store, results: Results) -> None:
    """Write `results` to `results.json` of the run's `store`."""
    text = json.dumps(standard_json(results), indent=2, allow_nan=False)
    store.put(RESULTS_KEY, text.encode() + b"\n")


def read_results(store: Store) -> Results:
    """Read the results of the run in `store`.

    Raises KdscaleError where there are none, or where they do not follow this schema.
    """
    if not store.exists(RESULTS_KEY):
        raise KdscaleError(
            f"There is no {RESULTS_KEY} in {store}: the run has not been evaluated.",
            "Check the output path, or run `kdscale run CONFIG --only evaluate`.",
        )
    try:
        return _ADAPTER.validate_json(store.get(RESULTS_KEY))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise KdscaleError(
            f"{RESULTS_KEY} in {store} does not follow schema version {SCHEMA_VERSION}: "
            f"{where}: {first['msg']} ({error.error_count()} problems in all).",
            "Write it again with `kdscale run CONFIG --only evaluate`.",
        ) from error


def standard_json(value: Any) -> Any:
    """Return `value` with non-finite floats as strings, which JSON has no numbers for."""
    if isinstance(value, Mapping):
        return {key: standard_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [standard_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def environment() -> tuple[dict[str, str], dict[str, Any]]:
    """Return (versions, hardware) of this process.

    Versions come from the packages' metadata, so that asking imports nothing; absent packages are
    left out. Hardware: `cpu` (model), `cores` (usable ones), `memory_bytes`, `gpus` (names).
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    hardware = {
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "memory_bytes": _memory_bytes(),
        "gpus": _gpu_names(),
    }
    return versions, hardware


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _gpu_names() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
