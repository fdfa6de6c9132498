.PHONY: audit

audit: install ## Look the locked packages up in the database of advisories (OSV) [OSV_URL=https://api.osv.dev]
	@$(BIN)/python tools/audit.py requirements.lock requirements-dev.lock deploy/build.lock
