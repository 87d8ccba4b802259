"""Walls: the packages that a package may import, and the one that may import a library."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.forked import context

PACKAGE = Path(__file__).parents[2] / "kdscale"

# Each package (or top-level module) with those that it may import. A dotted name is a part of a
# package with rules of its own, which others may be allowed to import alone.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "utils": {"errors"},
    "share": set(),
    "config": {"errors", "share", "utils"},
    "store": {"errors", "utils"},
    "distributed": {"errors", "store"},
    "tracking": {"config", "store"},
    "data": {"config", "errors", "store", "types", "utils"},
    "cache": {"config", "errors", "store", "types", "utils"},
    "losses": {"config", "types", "utils"},
    "curriculum": {"cache", "config", "utils"},
    "models": {"config", "distributed", "errors", "store", "types", "utils"},
    "train": {
        *("config", "data", "distributed", "errors", "losses", "models", "store", "tracking"),
        *("types", "utils"),
    },
    "teacher": {
        *("cache", "config", "data", "distributed", "errors", "losses", "models", "store"),
        *("tracking", "train", "types", "utils"),
    },
    "distill": {
        *("cache", "config", "curriculum", "data", "distill.alignment", "distributed", "errors"),
        *("losses", "models"),
        *("store", "train", "types", "utils"),
    },
    # Also read where models with tokenizers of their own are evaluated.
    "distill.alignment": {"data", "errors", "losses", "store", "types", "utils"},
    "workers": {"config", "distributed", "errors", "store", "tracking"},
    "run.stage_names": {"errors"},
    "run.finished_run": {"config", "data", "distill.alignment", "errors", "models", "store"},
    "evaluate": {
        *("cache", "cache.fidelity", "config", "data", "distill.alignment", "distributed"),
        *("errors", "models"),
        *("run.finished_run", "store", "tracking", "train", "types", "utils"),
    },
    "report": {
        *("config", "errors", "evaluate", "run.finished_run", "run.stage_names", "store"),
        *("tracking", "utils"),
    },
    "cache.fidelity": {
        *("cache", "config", "distributed", "errors", "models", "report", "run.finished_run"),
        *("store", "types", "utils"),
    },
    "preflight": {
        *("cache", "config", "curriculum", "data", "distill", "distill.alignment", "errors"),
        *("evaluate", "models"),
        *("run", "run.finished_run", "run.stage_names", "store", "teacher", "train", "utils"),
    },
    "run": {
        *("cache", "config", "data", "distill", "distill.alignment", "distributed", "errors"),
        *("evaluate", "models", "preflight", "report"),
        *("run.devices", "run.finished_run", "run.stage_names", "store", "teacher"),
        *("tracking", "train", "utils", "workers"),
    },
    # The report sets what a run cost against its plan.
    "run.devices": {"config", "evaluate", "plan", "run", "run.stage_names", "store"},
    "submit": {"config", "errors", "run", "run.stage_names", "share", "store", "utils"},
    "plan": {
        *("cache", "cache.fidelity", "config", "data", "distill", "distributed", "errors"),
        *("evaluate", "losses", "models", "preflight", "report", "run", "run.finished_run"),
        *("run.stage_names", "store", "teacher", "train", "types", "utils", "workers"),
    },
    "start": {"config", "data", "errors", "models", "plan", "preflight", "run", "run.stage_names"}
    | {"share", "store", "train"},
    "export": {
        *("config", "data", "errors", "evaluate", "models", "report", "run.finished_run"),
        *("store", "utils"),
    },
    "importing": {"cache", "config", "data", "errors", "models", "store", "types"},
    "doctor": {"config", "errors", "store", "tracking", "utils"},
    "api": {
        *("cache", "config", "curriculum", "data", "distill", "distributed", "errors", "losses"),
        *("models", "run.finished_run", "store", "types"),
    },
    "integrations": {
        *("api", "config", "curriculum", "distill", "errors", "models", "train", "types"),
        "utils",
    },
}

# Packages that only the CLI imports, and one another; `api` and `integrations` are for users alone.
LEAVES = {"start", "export", "importing", "doctor"}
FOR_USERS = {"api", "integrations"}

# Packages that train and read caches without Ray, as a user's own program does.
WITHOUT_RAY = ("api", "cache", "distributed", "integrations", "losses", "models", "train")

# The parts of the cache, each of which may import those before it.
CACHE = ("spec", "origin", "rows", "codecs", "format", "commit", "read", "maintain", "fidelity")

# A library, and the only packages or modules that may import it.
WALLS = {
    "wandb": {"tracking"},
    "wandb_workspaces": {"tracking"},
    "fsspec": {"store"},
    "obstore": {"store"},
    "botocore": {"store"},
    "deepspeed": {"models.sharded"},
    "ray.train": {"workers"},
    "ray.util.metrics": {"tracking"},
    "ray.job_submission": {"submit"},
    "typer": {"cli"},
    "yaml": {"config", "cli", "report", "start", "submit"},
    "datasets": {"data"},
    "tokenizers": {"data"},
    "numba": {"cache"},
    "onnxruntime": {"export"},
    "lm_eval": {"evaluate.harness"},
    "peft": {"models.lora", "models.adapter_folder"},
    "bitsandbytes": {"models.quantise"},
    "triton": {"cache.codecs.triton_encode", "losses.triton_chunk", "losses.triton_dense"},
    "matplotlib": {"report.charts"},
    "jinja2": {"report.pages", "data.chat", "submit.kuberay"},
}


def package_of(name: str) -> str:
    """Return the entry of ALLOWED that a module's dotted name, without `kdscale.`, belongs to."""
    first_two = ".".join(name.split(".")[:2])
    return first_two if first_two in ALLOWED else name.split(".")[0]


@cache
def modules() -> list[tuple[str, list[str]]]:
    """Return each module's dotted name, without `kdscale.`, and all that it imports."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found.append((name, list(imports(ast.parse(path.read_text(encoding="utf-8"))))))
    return found


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_packages_import_only_what_they_may() -> None:
    wrong = []
    for name, imported_names in modules():
        package = package_of(name)
        for imported in imported_names:
            if imported.startswith("kdscale.") and package in ALLOWED:
                other = package_of(imported.removeprefix("kdscale."))
                if other not in ALLOWED[package] | {package}:
                    wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_every_package_has_its_rules() -> None:
    packages = {name.split(".")[0] for name, _ in modules()}
    assert packages - {"", "__main__", "cli"} <= ALLOWED.keys()


def test_only_the_cli_imports_the_leaves() -> None:
    inside = {package: allowed for package, allowed in ALLOWED.items() if package not in LEAVES}
    assert [package for package, allowed in inside.items() if allowed & LEAVES] == []


def test_the_interface_for_users_is_on_top() -> None:
    below = {name: allowed for name, allowed in ALLOWED.items() if name not in FOR_USERS}
    assert [package for package, allowed in below.items() if allowed & FOR_USERS] == []


def test_the_parts_of_the_cache_import_those_before_them() -> None:
    wrong = []
    for name, imported_names in modules():
        if name.startswith("cache."):
            part = name.split(".")[1]
            for imported in imported_names:
                parts = imported.split(".")
                known = parts[:2] == ["kdscale", "cache"] and part in CACHE and parts[2] in CACHE
                if known and CACHE.index(parts[2]) > CACHE.index(part):
                    wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_the_report_reads_results_and_not_the_evaluation() -> None:
    for name, imported_names in modules():
        if name.startswith("report"):
            for imported in imported_names:
                if imported.startswith("kdscale.evaluate"):
                    module = ".".join(imported.split(".")[:3])
                    assert module in ("kdscale.evaluate.results", "kdscale.evaluate.schema"), name


@pytest.mark.parametrize("library", WALLS)
def test_one_wall_an_outside_library(library: str) -> None:
    found = {
        name
        for name, imported_names in modules()
        for imported in imported_names
        if imported == library or imported.startswith(f"{library}.")
    }
    outside = {
        name
        for name in found
        if not any(name == wall or name.startswith(f"{wall}.") for wall in WALLS[library])
    }
    assert found, f"nothing imports {library}: the wall is out of date"
    assert outside == set()


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("kdscale", "torch ray deepspeed transformers wandb pydantic numpy pyarrow yaml"),
        ("kdscale.config", "torch ray deepspeed transformers wandb numpy pyarrow"),
        ("kdscale.submit", "torch deepspeed transformers wandb"),
        ("kdscale.run.status", "torch ray deepspeed transformers wandb"),
        # The process of an actor of its own.
        ("kdscale.workers.channel", "torch ray deepspeed transformers numpy pydantic"),
        ("kdscale.report", "torch ray deepspeed transformers wandb matplotlib"),
        ("kdscale.cli", "torch ray deepspeed transformers wandb pydantic numpy pyarrow yaml"),
    ],
)
def test_light_imports_stay_light(module: str, forbidden: str) -> None:
    code = f"import sys, {module}; print([m for m in {forbidden.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_and_caches_load_no_ray() -> None:
    # Triton comes with torch's CUDA builds alone.
    missing = WALLS["triton"] if find_spec("triton") is None else set()
    names = [name for name, _ in modules() if name.split(".")[0] in WITHOUT_RAY]
    # The fork server has imported more than a new process, and Ray no more than that.
    with context.Pool(1) as pool:
        found = pool.apply(_loaded_after, ([name for name in names if name not in missing],))
    assert found == []


def _loaded_after(names: list[str]) -> list[str]:
    """Import kdscale's modules; return what is there of Ray."""
    for name in names:
        import_module(f"kdscale.{name}")
    return [name for name in ("ray", "kdscale.workers") if name in sys.modules]
