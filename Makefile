# Everything a person runs; `make help` lists it. Each target makes .venv first, on a machine that has Python 3.11 or
# later (with pip) and make only.
PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BY_FILE := --dist loadfile --no-loadscope-reorder
ALONE := tests/system/test_crash.py tests/system/test_freshness.py
PIP := python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := install
.PHONY: help install demo test unit lint docs structure bench lock ranges audit clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

install: $(STAMP)  ## .venv with everything, at the locked versions (the default)

# Third parties first, each file compared with its hash. torch is left to the second step: its builds (CPU, CUDA, ROCm)
# are different files, so only its version is fixed, and a CUDA build brings the libraries that it names itself.
$(STAMP): pyproject.toml clients/python/pyproject.toml requirements.lock requirements-dev.lock torch.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nextwatch needs Python 3.11 or later: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) --require-hashes --no-deps --requirement requirements.lock --requirement requirements-dev.lock
	$(BIN)/$(PIP) --no-build-isolation --constraint torch.lock --editable clients/python --editable '.[embedded,dev]'
	touch $@

demo: $(STAMP)  ## start everything, train, and show the point on a simulated world: a minute and a half after the install
	$(BIN)/nextwatch demo

# Alone and first the crash run, which restarts thirty processes and beside others takes four times as long, and how
# fresh a reply is, which says nothing beside others. Then whole systems, three at a time, for they wait a good deal.
# Files begin in the order of tests/conftest.py, the longest first.
test: $(STAMP)  ## all tests, against a broker and Milvus over TCP; says at its end what was left out
	$(BIN)/python -m pytest $(ALONE)
	$(BIN)/python -m pytest --numprocesses 3 $(BY_FILE) tests/system $(ALONE:%=--ignore %)
	$(BIN)/python -m pytest --numprocesses 3 $(BY_FILE) tests --ignore tests/system

unit: $(STAMP)  ## the tests that need no service: about a minute
	$(BIN)/python -m pytest -m 'not service and not slow' --numprocesses 2 tests/unit tests/test_architecture.py

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## docs/ as a site, in build/site
	$(BIN)/zensical build --clean --strict

structure: $(STAMP)  ## who imports whom, and how large everything is
	$(BIN)/python -m tests.harness.structure

bench: $(STAMP)  ## benchmarks: make bench BENCH='history --quick'
	$(BIN)/python -m tests.benchmarks $(BENCH)

lock: build/uv  ## requirements*.lock made anew from pyproject.toml; torch.lock is written by hand
	.ci/lock build/uv/bin/uv

ranges: build/uv  ## the unit tests with the lowest and with the newest versions that pyproject.toml allows
	.ci/ranges build/uv/bin/uv lowest
	.ci/ranges build/uv/bin/uv newest

# What only these targets need, so it is not in the lock itself.
build/audit:
	$(PYTHON) -m venv $@
	$@/bin/$(PIP) 'pip-audit>=2.7,<3'

build/uv:
	$(PYTHON) -m venv $@
	$@/bin/$(PIP) 'uv>=0.9,<0.14'

audit: $(STAMP) build/audit  ## known weaknesses of what is installed, asked of osv.dev; fails when it cannot be reached
	build/audit/bin/pip-audit --vulnerability-service osv --progress-spinner off \
	  --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

clean:  ## remove what the targets above have made
	rm -rf $(VENV) build *.egg-info clients/python/build clients/python/src/*.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache
