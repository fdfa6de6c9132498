"""User metrics into a PostgreSQL that you own: from HTTP bytes to a committed row."""

from importlib.metadata import version

__version__ = version("metrics-ingest")
