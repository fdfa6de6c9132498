"""What is changed in uvicorn, the HTTP server, and how long others may take."""

from contextlib import suppress
from functools import cache


@cache
def install() -> None:
    """Put our changes to uvicorn in place, once for the process."""
    from metrics_ingest.server import accepting

    accepting.install()
    with suppress(ImportError):  # without httptools uvicorn uses h11, which has limits of its own
        from metrics_ingest.server import protocol

        protocol.install()
