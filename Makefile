# ktrdr training. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PROTOS := $(shell cd protos && find ktrdr -name '*.proto' | sort)
GENERATED := clients/python
DEMO_DIR := .demo
TESTED := $(VENV)/.tested
TREE_DIGEST = git ls-files -co --exclude-standard -z | sort -z | xargs -0 sha256sum 2>&1 | sha256sum
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo test test-unit test-integration test-e2e quality check bench chaos fuzz proto proto-check format clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(READY) ## Create the virtual environment with the pinned dependencies

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found; install it or run: make PYTHON=/path/to/python"; exit 2; }
	@echo "set-up 1/4: virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "set-up 2/4: pinned dependencies (the largest is torch; some minutes on a slow line)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@echo "set-up 3/4: checking that they fit together"
	@$(BIN)/python -m pip check --disable-pip-version-check
	@echo "set-up 4/4: compiling the training kernels (once; some ten seconds)"
	@$(BIN)/python -c 'from ktrdr_core.training.stack_engine import warm_up; warm_up()'
	@touch $@

demo: export KTRDR_EMBEDDED_IDLE_S ?= 10
demo: $(READY) ## Train the shipped strategy on the shipped bars through a backend and a trainer
	@echo "demo 1/3: train on a backend and a trainer on loopback (state in $(DEMO_DIR))"
	@$(BIN)/ktrdr --data-dir $(DEMO_DIR) train strategies/neuro_mean_reversion.yaml --mode host
	@echo "demo 2/3: the stored model"
	@$(BIN)/ktrdr --data-dir $(DEMO_DIR) models show neuro_mean_reversion
	@echo "demo 3/3: its decisions on the last day of the bars"
	@$(BIN)/ktrdr --data-dir $(DEMO_DIR) models predict neuro_mean_reversion --symbol EURUSD --start 2017-12-29 --end 2017-12-29

test: $(READY) ## Run every test
	@rm -f $(TESTED); $(TREE_DIGEST) > $(TESTED).now
	@echo "test: unit, rpc, training, contracts, architecture, fuzz, integration, chaos, e2e"
	@HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -q -n 2 --dist loadfile \
		tests/unit tests/training tests/rpc tests/contracts tests/architecture tests/fuzz
	@HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
		tests/chaos tests/e2e tests/integration
	@mv $(TESTED).now $(TESTED)

test-unit: $(READY) ## Run the unit tests (seconds)
	@$(BIN)/python -m pytest -q -n 2 tests/unit

test-integration: $(READY) ## Run the tests with real servers and processes
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests/integration tests/contracts tests/rpc

test-e2e: $(READY) ## Run the real strategy through both modes, and the commands of the docs (under 2 min)
	@$(BIN)/python -m pytest -q tests/e2e

quality: $(READY) proto-check ## Check format, lint, types, imports, protos
	@echo "quality: format";  $(BIN)/ruff format --check --quiet .
	@echo "quality: lint";    $(BIN)/ruff check --quiet .
	@echo "quality: types";   $(BIN)/mypy
	@echo "quality: imports"; $(BIN)/lint-imports

check: quality ## Run everything CI runs; tests that have passed on this very tree are not run again
	@if test -f $(TESTED) && test "$$($(TREE_DIGEST))" = "$$(cat $(TESTED))"; \
		then echo "test: every test has passed on this very tree already (make test runs them again)"; \
		else $(MAKE) --no-print-directory test; fi

bench: $(READY) ## Run the benchmarks: one table of ratios
	@$(BIN)/python -m benchmarks

SCHEDULES ?= 200
SEED ?= 1
chaos: $(READY) ## Run random schedules of everything that can go wrong: make chaos SCHEDULES=200 SEED=1
	@$(BIN)/python -m tests.chaos --schedules $(SCHEDULES) --seed $(SEED)

SECONDS ?= 60
fuzz: $(READY) ## Throw hostile bytes at every parser, each for so long: make fuzz SECONDS=60
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

proto: $(READY) ## Regenerate the Python code of the protos
	@cd $(GENERATED) && find ktrdr -name '*_pb2*' -delete
	@$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(GENERATED) --mypy_out=quiet:$(GENERATED) \
		--grpc_python_out=$(GENERATED) --mypy_grpc_out=quiet:$(GENERATED) $(PROTOS)

proto-check: $(READY)
	@echo "quality: protos"
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/buf breaking --against protos/baseline.binpb

format: $(READY) ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/buf format --write

clean: ## Remove the virtual environment and the demo's state
	rm -rf $(VENV) $(DEMO_DIR)
