"""OpenTelemetry (OTLP/HTTP): decodes requests of SDKs and collectors, maps their records to metrics, and replies as specified."""
