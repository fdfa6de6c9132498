# The targets for users and developers of metrics-ingest. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
export PORT HOST DATABASE_URL

.PHONY: help install run psql demo screenshots test check migrate lock clean
.DEFAULT_GOAL := help

help: ## List these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: .venv/installed ## Create .venv with the package and its dependencies (other targets do this when needed)

.venv/installed: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "metrics-ingest: Python 3.11 or newer is needed, $(PYTHON) is `$(PYTHON) -V 2>&1`; try: make run PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up .venv (once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: install ## Serve all functions on one port, with an embedded PostgreSQL [PORT=8000] [DATABASE_URL=…]
	@exec $(BIN)/python -m metrics_ingest.local.emulator

psql: install ## Open psql on the database of `make run` (or read SQL from standard input)
	@exec $(BIN)/python -m metrics_ingest.local.postgres

demo: install ## Fill a running `make run` with two weeks of realistic data [PORT=8000]
	@exec $(BIN)/python -m metrics_ingest.local.demo

screenshots: install ## Take the pictures of the documentation anew, with an installed Chromium
	@$(BIN)/python tools/screenshots.py

WORKERS ?= 4
test: install ## Run the tests, on a real PostgreSQL and real processes [ARGS="-m 'not slow'" for the quick ones] [WORKERS=4]
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: install ## Check lint rules, formatting, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

migrate: install ## Create or update the tables, functions and roles in the database of DATABASE_URL
	@$(BIN)/metrics-ingest migrate

LOCK := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

lock: install ## Write the lock files: the newest versions that pyproject.toml allows, with hashes
	@$(LOCK) pyproject.toml -o requirements.lock
	@$(LOCK) --extra local --extra test --extra check --extra build pyproject.toml -o requirements-dev.lock
	@echo 'hatchling>=1.27' | $(LOCK) - -o deploy/build.lock

clean: ## Remove .venv, caches and the local database
	@rm -rf .venv .local .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

include $(wildcard benchmarks/*.mk deploy/*.mk tests/*.mk tests/*/*.mk)
