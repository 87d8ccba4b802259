"""Who may import whom, and which room alone may import an outside library."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kdscale"

# Each room (a folder or module of the package) with the rooms it stands on, itself left out.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "stages": set(),
    "scratch": set(),
    "ahead": set(),
    "desk": {"progress"},
    "shuffle": set(),
    "compiled": set(),
    "liveness": set(),
    "progress": {"liveness", "ray_session"},
    "metrics": set(),
    "config": {"errors"},
    "store": {"errors"},
    "panels": set(),
    "tracking": {"config", "metrics", "panels", "store", "workspace"},
    "workspace": {"panels"},
    "workers": {
        *("config", "desk", "errors", "liveness", "metrics", "progress", "ray_session", "store"),
    },
    "stop": {"errors", "store"},
    "lease": {"errors", "store"},
    "ray_session": {"errors", "store"},
    "data": {"config", "errors", "scratch", "shuffle", "store", "types"},
    "cache": {"ahead", "compiled", "config", "errors", "shuffle", "store", "types"},
    "losses": {"config", "types"},
    "models": {"config", "errors", "losses", "scratch", "store", "types", "workers"},
    "train": {
        *("config", "data", "errors", "losses", "models", "shuffle", "store", "tracking"),
        "workers",
    },
    "curriculum": {"cache", "config", "shuffle"},
    "committing": {"errors", "ray_session", "store"},
    "teacher": {
        *("cache", "config", "data", "errors", "losses", "metrics", "models", "store"),
        *("tracking", "train", "types", "workers"),
    },
    "student": {
        *("cache", "config", "curriculum", "data", "errors", "losses", "models", "scratch"),
        *("store", "train", "types", "workers"),
    },
    "evaluate": {
        *("config", "data", "errors", "models", "store", "tracking", "train", "types", "workers"),
    },
    "audit": {
        *("cache", "config", "errors", "models", "report", "store", "types", "workers"),
    },
    "report": {"config", "errors", "evaluate", "panels", "store"},
    "export": {"data", "errors", "evaluate", "models", "record", "report", "store"},
    "preflight": {
        *("cache", "config", "curriculum", "data", "errors", "evaluate", "models", "run"),
        *("stages", "store", "student", "teacher", "train"),
    },
    "plan": {
        *("audit", "cache", "config", "data", "errors", "evaluate", "losses", "models"),
        *("preflight", "progress", "ray_session", "report", "run", "store", "student", "teacher"),
        *("train", "workers"),
    },
    "record": {"evaluate", "stop", "store"},
    "heartbeat": {"config", "errors", "lease", "progress", "store"},
    "status": {"cache", "config", "errors", "heartbeat", "record", "stages", "store"},
    "run": {"cache", "config", "data", "errors", "models", "store"},
    "submit": {"config", "errors", "stages", "stop", "store"},
    "doctor": {"errors", "store", "tracking"},
}

# The rooms of the cache, each of which stands on those before it.
CACHE = ("identity", "origin", "rows", "codecs", "format", "commit", "read", "maintain")

# A library, and the only rooms or modules that may import it.
WALLS = {
    "wandb": {"tracking"},
    "wandb_workspaces": {"workspace"},
    "fsspec": {"store"},
    "obstore": {"store"},
    "botocore": {"store"},
    "deepspeed": {"models.sharded"},
    "ray.train": {"workers"},
    "ray.util.metrics": {"metrics"},
    "ray.job_submission": {"submit"},
    "typer": {"cli"},
    "yaml": {"config", "cli", "report", "submit.kuberay"},
    "datasets": {"data"},
    "tokenizers": {"data"},
    "numba": {"compiled"},
    "onnxruntime": {"export"},
    "lm_eval": {"evaluate.harness"},
    "matplotlib": {"report.charts"},
    "jinja2": {"report.pages", "data.chat"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_stand_only_on_the_rooms_below_them() -> None:
    wrong = []
    for name, tree in modules():
        room = name.split(".")[0]
        for imported in imports(tree):
            parts = imported.split(".")
            if parts[0] == "kdscale" and len(parts) > 1 and room in ALLOWED:
                other = parts[1]
                known = other in ALLOWED or (PACKAGE / other).exists()
                if known and other not in ALLOWED[room] | {room}:
                    wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_the_rooms_of_the_cache_stand_on_those_before_them() -> None:
    wrong = []
    for name, tree in modules():
        if name.startswith("cache."):
            place = CACHE.index(name.split(".")[1])
            for imported in imports(tree):
                parts = imported.split(".")
                if parts[:2] == ["kdscale", "cache"] and CACHE.index(parts[2]) > place:
                    wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_the_report_reads_results_and_not_the_evaluation() -> None:
    for name, tree in modules():
        if name.startswith("report"):
            for imported in imports(tree):
                if imported.startswith("kdscale.evaluate"):
                    assert imported.startswith("kdscale.evaluate.results"), name


@pytest.mark.parametrize("library", WALLS)
def test_one_wall_an_outside_library(library: str) -> None:
    found = {
        name
        for name, tree in modules()
        for imported in imports(tree)
        if imported == library or imported.startswith(f"{library}.")
    }
    outside = {
        name
        for name in found
        if not any(name == room or name.startswith(f"{room}.") for room in WALLS[library])
    }
    assert found, f"nothing imports {library}: the wall is out of date"
    assert outside == set()


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("kdscale.config", "torch ray deepspeed transformers wandb numpy pyarrow"),
        ("kdscale.submit", "torch deepspeed transformers wandb"),
        ("kdscale.run.status", "torch ray deepspeed transformers wandb"),
        # Helpers of a run, each a process of its own.
        ("kdscale.workers.task_queue", "torch ray deepspeed transformers numpy pydantic"),
        ("kdscale.workers.progress", "torch ray deepspeed transformers numpy pydantic"),
        ("kdscale.report", "torch ray deepspeed transformers wandb matplotlib"),
        ("kdscale.cli", "torch ray deepspeed transformers wandb pydantic numpy pyarrow yaml"),
    ],
)
def test_light_rooms_stay_light(module: str, forbidden: str) -> None:
    code = f"import sys, {module}; print([m for m in {forbidden.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
