"""User metrics into a PostgreSQL that you own: from HTTP bytes to a committed row."""

import gc
from importlib.metadata import version

__version__ = version("metrics-ingest")

# What comes and goes here dies by its reference count. The collector would look through all that is being imported (a
# tenth of the start), and then through every request in flight (a third of the server's time), again and again.
gc.set_threshold(50_000)
