# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
READY := .venv/installed

.PHONY: demo test check format lint types layers results clean

demo: $(READY)  ## train, measure, merge and judge language experts on the embedded corpus
	$(BIN)/langmerge demo --out demo

test: $(READY)  ## the default test suite
	$(BIN)/python -m pytest -n 2

check: format lint types layers test  ## what CI runs, besides the demo

format: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff check --select F821 scripts benchmarks

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports --no-cache

results: $(READY)  ## docs/results-massive.md: about 90 minutes on 2 cores, needs MASSIVE
	$(BIN)/langmerge sweep examples/massive.yaml --out results
	cp results/results.md docs/results-massive.md

# torch first and alone: the pin in constraints.txt decides which build is taken.
$(READY): pyproject.toml constraints.txt setup.py $(wildcard src/langmerge/kernels/*.[ch])
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv demo build
