"""A client for programs without OpenTelemetry. It needs requests (the extra `client`) and no other part of this."""

from metrics_ingest.client.client import Client

__all__ = ["Client"]
