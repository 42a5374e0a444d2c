# Everything a person runs. Each target makes .venv first, on a machine that has Python 3.11 (with pip) and make only.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint bench audit clean
install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nextwatch needs Python 3.11 or later: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/nextwatch demo

# The crash run first and alone: it restarts thirty processes, and beside others takes four times as long.
test: $(STAMP)
	$(BIN)/python -m pytest tests/system/test_crash.py
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --ignore tests/system/test_crash.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks $(BENCH)

# Known weaknesses of what is installed here, asked of osv.dev. Not in CI: it says so when it cannot be reached, and fails.
audit: $(STAMP)
	@$(BIN)/python infra/operate/audit.py $(BIN)/python

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
