# Included by the Makefile at the root. The other stacks have an environment and locks of their own.
BENCH_VENV := .local/bench-venv
BENCH_NODE := benchmarks/peers/node
BENCH_BUN := benchmarks/peers/bun
BENCH_PYTHONS := $(foreach version,3.12 3.13 3.14,.local/bench-python$(version)/installed)

.PHONY: bench bench-lock
bench: install $(BENCH_VENV)/installed $(BENCH_NODE)/node_modules/installed $(BENCH_BUN)/node_modules/installed $(BENCH_PYTHONS) ## Compare with other stacks, side by side [BENCH="--seconds 2 --only ours,fastapi"]
	@$(BIN)/python -m benchmarks $(BENCH)

bench-lock: install ## Pin the newest versions of the other stacks
	@$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		benchmarks/peers/requirements.in -o benchmarks/peers/requirements.txt
	@cd $(BENCH_NODE) && npm update --omit-lockfile-registry-resolved
	@cd $(BENCH_BUN) && npm update --omit-lockfile-registry-resolved

$(BENCH_VENV)/installed: benchmarks/peers/requirements.txt
	@echo "setting up $(BENCH_VENV) (once)"
	@$(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# Without Node its stacks are skipped, and the benchmark says so.
$(BENCH_NODE)/node_modules/installed: $(BENCH_NODE)/package-lock.json
	@if command -v npm >/dev/null; then cd $(BENCH_NODE) && npm ci --silent --no-audit --no-fund; fi
	@mkdir -p $(@D) && touch $@

# A folder of its own, because npm installs no package of a folder where one of them fails, and Bun is not built for every system.
$(BENCH_BUN)/node_modules/installed: $(BENCH_BUN)/package-lock.json
	@if command -v npm >/dev/null; then cd $(BENCH_BUN) && { npm ci --silent --no-audit --no-fund || rm -rf node_modules; }; fi
	@mkdir -p $(@D) && touch $@

# The same code on newer versions of Python, those of which are installed.
.local/bench-python%/installed: requirements.lock $(wildcard src/metrics_ingest/*.py src/metrics_ingest/*/*.py)
	@if python$* -c '' 2>/dev/null; then python$* -m venv $(@D) && \
		$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $< -r deploy/build.lock && \
		$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation .; fi
	@mkdir -p $(@D) && touch $@
