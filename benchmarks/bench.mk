# Included by the Makefile at the root. BENCH passes options on: make bench BENCH="--seconds 2 --only ours,fastapi"
BENCH_VENV := .local/bench-venv

.PHONY: bench bench-lock
bench: install $(BENCH_VENV)/.done benchmarks/peers/node/node_modules/.done ## compare with other stacks, side by side (BENCH="--help" for options)
	$(BIN)/python -m benchmarks $(BENCH)

bench-lock: install ## lock what the other stacks need anew
	$(BIN)/uv pip compile -q --upgrade --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
		-o benchmarks/peers/requirements.txt benchmarks/peers/requirements.in
	cd benchmarks/peers/node && npm update --omit-lockfile-registry-resolved

$(BENCH_VENV)/.done: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install -q --require-hashes -r benchmarks/peers/requirements.txt
	touch $@

# Without Node the Node peers are skipped, and the benchmark says so.
benchmarks/peers/node/node_modules/.done: benchmarks/peers/node/package-lock.json
	if command -v npm >/dev/null; then cd benchmarks/peers/node && npm ci --no-audit --no-fund; fi
	mkdir -p $(@D) && touch $@
