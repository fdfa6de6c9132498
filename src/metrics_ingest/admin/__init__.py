"""The command `metrics-ingest`: what an operator does to the database."""
