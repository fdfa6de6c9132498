"""What a service may ask of a connection that protocol.py serves: the shortcuts around the ASGI interface."""

from collections.abc import Iterable
from typing import Protocol

from starlette.types import Scope

EXTENSION = "metrics_ingest"  # in a request's scope (ASGI, "Extensions")


class FastPath(Protocol):
    """A connection of protocol.TunedProtocol."""

    def take_buffered_body(self, scope: Scope) -> bytes | None:
        """Return the request's body if all of it has arrived, else None: then call `receive`."""

    def send_reply(self, scope: Scope, status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a reply in one write. Return False if that is not possible: then call `send`."""


def fast_path(scope: Scope) -> FastPath | None:
    """Return the connection of a request, or None where another protocol serves it (SERVER=stock, h11, tests)."""
    extensions: dict[str, FastPath] = scope.get("extensions", {})
    return extensions.get(EXTENSION)
