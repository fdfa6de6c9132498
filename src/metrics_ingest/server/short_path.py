"""The shortcut from a service to its connection, around the ASGI interface."""

from typing import TYPE_CHECKING

from starlette.types import Scope

if TYPE_CHECKING:  # it needs httptools, which is not installed on Windows
    from metrics_ingest.server.protocol import TunedProtocol

EXTENSION = "metrics_ingest"  # in a request's scope (ASGI, "Extensions")


def short_path(scope: Scope) -> "TunedProtocol | None":
    """Return the connection of a request, or None where another protocol serves it (SERVER=stock, h11, tests)."""
    extensions: dict[str, TunedProtocol] = scope.get("extensions", {})
    return extensions.get(EXTENSION)
