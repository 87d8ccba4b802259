# Every target builds what it needs in .venv, so that a fresh clone needs Python and a package index only.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow check bench clean

quickstart: .venv/.installed
	$(BIN)/kdscale run jobs/configs/quickstart.yaml

test: .venv/.installed-dev
	$(BIN)/pytest -m "not slow"

# Minutes each: the quickstart on a local disk and on a real S3 server.
test-slow: .venv/.installed-dev
	$(BIN)/pytest -m slow

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A quick pass over every benchmark, to see that it works; full runs are in docs/benchmarks.md.
bench: .venv/.installed-dev
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script --quick || exit 1; done

clean:
	rm -rf .venv runs wandb

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev,s3]"
	touch $@
