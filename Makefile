# Every target builds what it needs in .venv, so that a fresh clone needs Python and a package index only.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow check bench bench-setup clean

quickstart: .venv/.installed
	$(BIN)/kdscale run jobs/configs/quickstart.yaml

# Two processes: tests/conftest.py keeps the tests that start Ray in one of them.
test: .venv/.installed-dev
	$(BIN)/pytest -m "not slow" -n 2 --durations=15

# Minutes each: the quickstart on a disk, on a real S3 server and as a job, faults on three nodes,
# elastic groups, load.
test-slow: .venv/.installed-dev
	$(BIN)/pytest -m slow

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A real teacher, SmolLM2-135M, on BBC news: about 40 minutes on 2 cores, see benchmarks/README.md.
bench: .venv/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check gguf
	$(BIN)/python benchmarks/smollm2_bbc.py

# The peers of benchmarks/{reader,loss,step_cost}.py, in an environment of their own.
bench-setup: .venv-bench/.installed

clean:
	rm -rf .venv .venv-bench runs wandb

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
