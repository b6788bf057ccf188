# `make demo` and `make test` need only Python 3.11 to 3.13 and make: each sets up .venv first, once.

# The first interpreter on this machine that fits and can make environments; set PYTHON=... to choose.
FITS = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c '$(FITS)' 2>/dev/null && { echo $$p; break; }; done)

BIN = .venv/bin
READY = .venv/.installed

# Idle OpenMP threads sleep, so that other processes on a small machine get the cores.
export OMP_WAIT_POLICY = PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Another checkout's code must not be imported in place of this one.
unexport PYTHONPATH

.PHONY: demo demo-fast test lint format setup clean

demo: $(READY)
	$(BIN)/lexrec demo

demo-fast: $(READY)
	$(BIN)/lexrec demo --fast

# Tests run in several processes, each with one thread: quicker than one process with many.
test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "lexrec needs Python 3.11, 3.12 or 3.13 with the venv module; \
	none was found. Install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
