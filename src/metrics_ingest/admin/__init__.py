"""The command `metrics-ingest`, with which an operator manages the database."""
