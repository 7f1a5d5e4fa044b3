# make train: a trained EGNN, its error beside the paper's, and pictures. make test: everything CI runs.
# make benchmark: how much faster ours is than PyTorch and plain JAX; `make benchmark CASES="nbody qm9"` runs some cases alone.
# Needs only Python 3.11 or newer; `make train PYTHON=python3.12` picks another.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.installed
BENCH := .venv/.installed-bench

.PHONY: setup train test lint benchmark

setup: $(SETUP)

$(SETUP): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "egnn_jax needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

train: $(SETUP)
	$(BIN)/python scripts/train.py configs/nbody/quick.yaml
	$(BIN)/python scripts/report.py runs/nbody/quick

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

$(BENCH): $(SETUP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

benchmark: $(BENCH)
	$(BIN)/python scripts/benchmark.py $(if $(CASES),--cases $(CASES))
