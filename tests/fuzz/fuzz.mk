.PHONY: fuzz contract

fuzz: install ## Fuzz the parsers and the running functions for minutes, with new input [FUZZ_EXAMPLES=5000]
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),5000) $(BIN)/python -m pytest tests/fuzz/test_parsers.py tests/fuzz/test_functions.py tests/fuzz/test_database.py $(ARGS)

contract: install ## Try the OpenAPI document against the running functions for some minutes [CONTRACT_EXAMPLES=1000]
	@CONTRACT_EXAMPLES=$(or $(CONTRACT_EXAMPLES),1000) $(BIN)/python -m pytest -s tests/fuzz/test_schemathesis.py $(ARGS)
