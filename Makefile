# Every target does its own set-up first (tools/setup.sh: idempotent).
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python

.PHONY: help setup demo test up bench docs lint lock

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing: system packages, virtual environment, Docker engine
	@tools/setup.sh

demo: setup ## Migrate a real Debian server end to end through Prefect; the last line is JSON
	@$(PYTHON) -m demo

test: setup lint ## Run every test; what is skipped is listed with its reason
	@$(PYTHON) -m pytest -n 2 --dist loadfile --durations 25

up: setup ## Run Prefect, the worker and the API in the foreground
	@.venv/bin/rehost up

bench: setup ## Measure Rehost beside its peers in one run; the last line is JSON
	@$(PYTHON) -m benchmarks

docs: setup ## Write docs/errors.md and docs/states.md anew from the tables in code
	@$(PYTHON) -m tools.errors_doc
	@$(PYTHON) -m tools.states_doc

lint: setup ## ruff, mypy, import-linter, codespell
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/codespell

lock: ## Make requirements.lock anew from pyproject.toml
	@tools/lock.sh
