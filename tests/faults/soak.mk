.PHONY: everything soak

everything: install ## Run everything at once, at random, against a model of what was acknowledged [EVERYTHING_S=300]
	@EVERYTHING_S=$(or $(EVERYTHING_S),300) $(BIN)/python -m pytest -s tests/faults/test_everything.py $(ARGS)

soak: install ## Kill the database fifty times under load, run everything at once, then the fault tests three times [KILLS=50] [EVERYTHING_S=300]
	@KILLS=$(or $(KILLS),50) $(BIN)/python -m pytest -s tests/faults/test_kills.py -k killed_database $(ARGS)
	@$(MAKE) --no-print-directory everything
	@for turn in 1 2 3; do $(BIN)/python -m pytest tests/faults $(ARGS) || exit 1; done
