.PHONY: overlap

overlap: install ## Let two clients send overlapping shuffled batches for a minute [OVERLAP_S=60]
	@OVERLAP_S=$(or $(OVERLAP_S),60) $(BIN)/python -m pytest -s tests/functions/test_ingest_batch_load.py -k overlapping $(ARGS)
