.PHONY: contract overlap

contract: install ## Try the OpenAPI document against the running functions for some minutes [CONTRACT_EXAMPLES=1000]
	@CONTRACT_EXAMPLES=$(or $(CONTRACT_EXAMPLES),1000) $(BIN)/python -m pytest -s tests/fuzz/test_schemathesis.py

overlap: install ## Let two clients send overlapping shuffled batches for a minute [OVERLAP_S=60]
	@OVERLAP_S=$(or $(OVERLAP_S),60) $(BIN)/python -m pytest -s tests/functions/test_ingest_batch_load.py -k overlapping
