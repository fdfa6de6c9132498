"""OpenTelemetry: decodes OTLP/HTTP requests, maps their records to metrics, and replies as the specification says."""
