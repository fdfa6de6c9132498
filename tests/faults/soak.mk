.PHONY: soak
soak: install ## Kill the database fifty times under load, and run the other fault tests three times over
	@KILLS=50 $(BIN)/python -m pytest -s tests/faults/test_kills.py -k killed_database
	@for turn in 1 2 3; do $(BIN)/python -m pytest tests/faults || exit 1; done
