# Every target installs what it needs into .venv: a fresh clone needs Python 3.11+ and a package index only.
PYTHON ?= python3
BIN := .venv/bin
# mkdocs-material announces the end of mkdocs at every build.
export NO_MKDOCS_2_WARNING := 1
# Some containers set it; then every process compiles the package and its tests anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-kernels test-gpu check docs docs-serve bench bench-setup clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | \
		while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

quickstart: .venv/.installed ## Raw text to a distilled, evaluated student on 2 cores
	$(BIN)/kdscale run jobs/configs/quickstart.yaml

# Three processes of one thread: tests/conftest.py keeps the tests that start Ray in one of them.
test: .venv/.installed-dev ## All tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 3 --durations=15

# Minutes each: the quickstart on a disk, on a real S3 server and as a job, faults on three nodes,
# elastic groups, load.
test-slow: .venv/.installed-dev ## The tests that take minutes each
	$(BIN)/pytest -m slow

# Triton's interpreter and compiler need no GPU, but 600 MB that torch's builds for CPUs do without.
test-kernels: .venv/.installed-triton ## Kernels for GPUs: interpreted against float64, and compiled
	PYTHONPATH=.venv/triton OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit/cache/test_triton_encode.py \
		tests/unit/losses/test_triton_chunk.py

# On a CPU it says what it skips.
test-gpu: .venv/.installed-dev ## Values, memory and times on this machine's GPU, 10 minutes
	$(BIN)/python benchmarks/gpu_check.py

check: .venv/.installed-dev ## Lint, format, spelling, types, and a strict build of the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/mkdocs build --quiet

docs: .venv/.installed-dev ## Build the documentation into site/
	$(BIN)/mkdocs build

docs-serve: .venv/.installed-dev ## Serve the documentation at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

# A real teacher, SmolLM2-135M, on BBC news: about 40 minutes on 2 cores, see benchmarks/README.md.
bench: .venv/.installed-dev ## Distil SmolLM2-135M on BBC news, 40 minutes
	$(BIN)/pip install --quiet --disable-pip-version-check gguf
	$(BIN)/python benchmarks/smollm2_bbc.py

# The peers of benchmarks/{reader,loss,step_cost}.py, in an environment of their own.
bench-setup: .venv-bench/.installed ## Install the rivals that the benchmarks compare with

clean: ## Remove environments, runs and the built docs
	rm -rf .venv .venv-bench runs wandb site

.venv-bench/.installed: benchmarks/requirements-peers.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev,export,s3]"
	touch $@

.venv/.installed-triton: .venv/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/triton "triton>=3.5,<3.10"
	touch $@
