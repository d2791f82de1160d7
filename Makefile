# `make train` and `make test` go from a fresh clone with only Python (3.11 or newer) and make to
# the result. The first call creates .venv and installs into it.
#
#   PYTHON  the interpreter of the environment
#   TORCH   what pip installs as PyTorch, first; on Linux the default is the CUDA build, which also
#           runs without a GPU. Options for pip may follow, see README.md.
#   ARGS    passed on: make train ARGS="gpt2 --data.path DIR", make test ARGS="-k golden"

PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed
DEV := .venv/.dev

.PHONY: train test lint types format docs dev clean

train: $(INSTALLED)
	$(BIN)/quintic train $(ARGS)

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site lies in site/ afterwards; `.venv/bin/mkdocs serve` shows it while it is written.
docs: $(DEV)
	$(BIN)/mkdocs build --strict

# PyTorch comes first and by itself: a later package that asks for "torch" then keeps this build.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quintic needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[test]"
	touch $@

dev: $(DEV)

# What checks and builds, beyond what trains and tests, and the trainers that Muon is tested in.
$(DEV): $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev,test,integration]"
	touch $@

clean:
	rm -rf .venv site
