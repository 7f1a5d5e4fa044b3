# make train: a trained EGNN, its error beside the paper's, and pictures.
# make test: what CI runs. make test-all: the slow tests too.
# make benchmark: our speed against PyTorch and plain JAX; CASES="nbody qm9" runs some cases.
# make docs: the site, in docs/_build.
# Needs only Python 3.11 or newer; `make train PYTHON=python3.12` picks another.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.installed
BENCH := .venv/.installed-bench
DOCS := .venv/.installed-docs
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: setup train test test-all lint benchmark docs

setup: $(SETUP)

$(SETUP): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "egnn_jax needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

train: $(SETUP)
	$(BIN)/egnn train nbody/egnn_best
	$(BIN)/egnn report runs/nbody/egnn_best

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# Compiling takes most of the time of the tests. These settings shorten it; test-all has XLA's defaults.
# JAX 0.12 refuses the flag, but the pinned version has it.
test: lint
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS=--xla_cpu_use_fusion_emitters=false $(PYTEST)

test-all: lint
	$(PYTEST) -m 'not peers' --hypothesis-profile many

$(BENCH): $(SETUP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

benchmark: $(BENCH)
	$(BIN)/python scripts/benchmark.py $(if $(CASES),--cases $(CASES))

$(DOCS): $(SETUP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

docs: $(DOCS)
	rm -rf docs/_build docs/api/made
	$(BIN)/sphinx-build -W --keep-going --quiet --jobs auto docs docs/_build/html
