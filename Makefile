# Everything runs in .venv, which is made when it is first needed and again when a pyproject.toml changes.
#
#   make demo        a first result: masks, none, and smaller pictures for the same time, with a picture
#   make test        what CI runs: lint, format, types, tests without the slow ones
#   make test-slow   the slow tests
#   make test-peers  open_clip and transformers load what flipkit writes, in .venv-peer
#   make test-newest the tests with Keras's nightly build and the newest JAX, Grain and Orbax, in .venv-newest
#   make test-oldest the tests with the oldest releases that pyproject.toml allows, in .venv-oldest
#   make bench       step time with and without masks, beside the FLOPs; rates of the data
#   make clean       removes what these made, .venv too

# The first Python that is new enough; `make PYTHON=/path/to/python demo` takes another.
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13 python3.14,\
  $(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))

DEMO := -m flipkit.compare flip_characters mask_ratio=0.75,0.0 also='mask_ratio=0.0 image_size=48 tuning=0.1' seconds=60 \
  baseline=mask_ratio=0.0 chance=0.002 title="Naming characters in fonts never seen: 500 names, top-1" \
  --workdir demo
WORKERS := 2

VENV := .venv
BIN := $(VENV)/bin
PEER := .venv-peer
NEWEST := .venv-newest
OLDEST := .venv-oldest
QUIET := --quiet --quiet --disable-pip-version-check
PIP := $(BIN)/python -m pip install $(QUIET)
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
METADATA := pyproject.toml $(wildcard plugins/*/pyproject.toml)

# Where TensorFlow is installed, Keras imports it: only its errors are of interest here.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help demo test test-slow test-peers test-newest test-oldest bench clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo
	@rm -rf demo
	@$(BIN)/python $(DEMO)

test: $(VENV)/.installed-dev
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'not slow'

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'slow and not peers'

test-peers: $(VENV)/.installed-dev $(PEER)/.installed
	$(BIN)/python -m pytest -q -m peers tests/peers

test-newest: $(NEWEST)/.installed
	$(NEWEST)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'not slow'

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'not slow'

bench: $(VENV)/.installed-demo
	$(BIN)/python benchmarks/step_time.py
	$(BIN)/python benchmarks/datasets.py

clean:
	rm -rf $(VENV) $(PEER) $(NEWEST) $(OLDEST) demo build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "flipkit needs Python 3.11 or newer: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	@echo "Making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(METADATA) | $(BIN)/python
	@echo "Installing flipkit and its masker plugin"
	@$(PIP) -e '.[plot]' -e plugins/block_masker
	@touch $@

$(PEER)/.installed:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 1; }
	@echo "Making $(PEER): open_clip, transformers and torch"
	@test -x $(PEER)/bin/python || $(PYTHON) -m venv $(PEER)
	@$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check 'open_clip_torch==3.3.0' 'transformers>=5.0,<6'
	@touch $@

# Keras's nightly build takes the place of Keras, which TensorFlow brings with it.
$(NEWEST)/.installed: $(METADATA)
	@echo "Making $(NEWEST): flipkit, its plugins, keras-nightly and the newest releases beside it"
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -m pip install $(QUIET) --upgrade --upgrade-strategy eager -e '.[dev]' $(PLUGINS:%=-e %)
	@$(NEWEST)/bin/python -m pip uninstall $(QUIET) --yes keras
	@$(NEWEST)/bin/python -m pip install $(QUIET) --force-reinstall --pre --no-deps keras-nightly
	@touch $@

$(OLDEST)/.installed: $(METADATA) .ci/oldest.py
	@echo "Making $(OLDEST): flipkit with the oldest releases that it allows"
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@$(PYTHON) .ci/oldest.py > $(OLDEST)/constraints.txt
	@$(OLDEST)/bin/python -m pip install $(QUIET) -c $(OLDEST)/constraints.txt -e '.[dev]' $(PLUGINS:%=-e %)
	@touch $@

$(VENV)/.installed-dev: $(METADATA) | $(BIN)/python
	@echo "Installing flipkit, its plugins and what the tests need"
	@$(PIP) -e '.[dev]' $(PLUGINS:%=-e %)
	@touch $@
