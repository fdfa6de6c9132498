contract: install ## Try the OpenAPI document against the running functions for some minutes [CONTRACT_EXAMPLES=1000]
	@CONTRACT_EXAMPLES=$(or $(CONTRACT_EXAMPLES),1000) $(BIN)/python -m pytest -s tests/test_schemathesis.py
