# Security checks that take longer than a test run, or the network; included by the Makefile.
FUZZ_EXAMPLES ?= 20000

.PHONY: fuzz audit

fuzz: install ## Fuzz the parsers and the HTTP surface for minutes [FUZZ_EXAMPLES=20000]
	@FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/fuzz/test_fuzz.py tests/fuzz/test_abuse.py $(ARGS)

audit: install ## Look the locked packages up in the database of advisories (OSV) [OSV_URL=https://api.osv.dev]
	@$(BIN)/python tools/audit.py requirements.lock requirements-dev.lock deploy/build.lock
