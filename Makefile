# make train: a trained EGNN, its error beside the paper's, and pictures. make test: everything CI runs.
# Needs only Python 3.11 or newer; `make train PYTHON=python3.12` picks another.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.installed

.PHONY: setup train test lint

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
