# Palate. `make run` and `make test` are all a newcomer needs; `make help` lists the rest.

PYTHON  ?=
ARGS    ?=
PRESETS ?= builtin_vividness builtin_balance builtin_composition
VENV := .venv
BIN  := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run setup setup-dev browser test test-slow check bench docs clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

run: setup ## Set up once, then start the workbench (ARGS=--no-demo: without the demo run)
	@exec $(BIN)/palate up $(ARGS)

test: setup-dev browser ## Set up, then run every check and every test but the slow proofs
	@$(MAKE) --no-print-directory check

check: setup-dev ## The gate, the same by hand and in CI: ruff, mypy, import contracts, pytest
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: setup-dev browser ## The proofs that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

bench: setup ## Measure learning on this machine, hours in all (PRESETS=builtin_vividness ARGS="--seeds 0": minutes)
	@$(PIP_INSTALL) --quiet --editable ".[bench]"
	@for preset in $(PRESETS); do $(BIN)/python benchmarks/builtin_learning.py --preset $$preset $(ARGS) || exit 1; done

docs: setup ## Write the settings reference and the table of models anew
	$(BIN)/python docs/make_settings_reference.py
	$(BIN)/python docs/make_models_table.py

clean: ## Remove .venv and caches; runs and their images in .palate stay
	rm -rf $(VENV) build palate.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up happens again only when pyproject.toml or constraints.txt change: the stamps remember.
setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

browser: setup-dev
	@$(BIN)/python tests/find_browser.py --install

$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Palate's dependencies into $(VENV); this happens once and takes a few minutes."
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Palate's dependencies and test tools into $(VENV); this happens once and takes a few minutes."
	@$(PIP_INSTALL) --editable ".[dev]"
	@touch $(VENV)/.ready $@

# PYTHON=... if given, else the first of these that is new enough.
$(BIN)/python:
	@for candidate in $(PYTHON) $(if $(PYTHON),,python3 python3.13 python3.12 python3.11); do \
	  if command -v $$candidate >/dev/null 2>&1 && \
	     $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Palate needs Python 3.11 or newer, and found none. Install it, or name it: make run PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	if ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "$$python has no venv module. On Debian or Ubuntu: apt install python3-venv; then run make again." >&2; \
	  exit 1; \
	fi; \
	$$python -m venv $(VENV)
