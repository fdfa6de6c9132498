"""uvicorn's HTTP protocol (httptools) with limits, and with a short path for POST requests.

Limits: on the bytes that are buffered before a function sees the request, and on pipelined requests.
Short path: a POST goes directly to the function's handler; a body that has arrived is taken without waiting; a reply
is sent in one write. Wherever one of these is not possible, uvicorn's own way is used.
"""

import logging
import random
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus

import uvicorn.config
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from metrics_ingest.server.fast_path import EXTENSION

HEAD_BYTES = 65_536  # of one request: its request line and header fields, or its trailer fields
PIPELINED_REQUESTS = 64  # of one connection, waiting for the reply to an earlier one
EXECUTION_ID = b"function-execution-id"


class TunedProtocol(HttpToolsProtocol):
    """One connection. A request's scope refers to it as the extension `metrics_ingest`: see fast_path.py."""

    _unparsed = 0  # bytes since the last complete head, or the last part of a body
    _in_progress: tuple[RequestResponseCycle, ...] = ()

    def data_received(self, data: bytes) -> None:
        """Parse `data`. Reply 400 and close when a head is larger than HEAD_BYTES."""
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of a request may have {HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """Start the function. Raise ValueError, which uvicorn answers with 400, for too many pipelined requests."""
        self._unparsed = 0
        if len(self.pipeline) >= PIPELINED_REQUESTS:
            raise ValueError
        if self.parser.get_method() == b"POST":
            self.app = without_middleware(self.config.loaded_app)
            if EXECUTION_ID not in dict(self.headers):  # the middleware would add it; the function's log lines hold it
                self.headers.append((EXECUTION_ID, b"%012x" % random.getrandbits(48)))  # seeded anew after a fork
        else:
            self.app = self.config.loaded_app
        super().on_headers_complete()
        # Not the cycle: it refers to the scope, and only the garbage collector could free such a pair.
        # uvicorn's types allow only dicts here; ASGI leaves the value of an extension to the server.
        self.scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]
        self._in_progress = (*(cycle for cycle in self._in_progress if not cycle.response_complete), self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Mark all requests in progress as disconnected, because uvicorn marks only the connection's last."""
        super().connection_lost(exc)
        for cycle in self._in_progress:
            cycle.disconnected = True

    def on_body(self, body: bytes) -> None:
        """Pass on a part of a body."""
        self._unparsed = 0
        super().on_body(body)

    def take_buffered_body(self, scope: Scope) -> bytes | None:
        """Return the body of a request, or None if it is not the connection's last or parts of it are missing."""
        cycle = self.cycle
        if cycle.scope is not scope or cycle.more_body or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def send_reply(self, scope: Scope, status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a reply in one write, and so in one packet instead of two. Return whether this was possible.

        It is not where another request of the connection came after this one, the reply has no body, ends the
        connection or must be logged, or the client is slow to read.
        """
        cycle = self.cycle
        if (
            cycle.scope is not scope
            or cycle.response_started
            or not cycle.keep_alive
            or cycle.flow.write_paused
            or scope["method"] == "HEAD"
            or status == HTTPStatus.NO_CONTENT
            or (cycle.access_log and cycle.access_logger.isEnabledFor(logging.INFO))
        ):
            return False
        if cycle.disconnected:
            return True
        content = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *fields):
            if name == b"connection":
                return False
            content += (name, b": ", value, b"\r\n")
        content += (b"\r\n", body)
        cycle.response_started = cycle.response_complete = True
        cycle.transport.write(b"".join(content))
        cycle.message_event.set()
        cycle.on_response()
        return True


@cache
def without_middleware(app: ASGIApp) -> ASGIApp:
    """Return functions-framework's handler of the function as an app, without the layers before it.

    These are eight layers and four routes, a fifth of a request's CPU time (docs/benchmarks.md). A function that
    replies to its own errors needs none of them. Return an app of any other shape as it is.
    """
    inner = app
    while not hasattr(inner, "routes") and hasattr(inner, "app"):
        inner = inner.app
    handlers = [
        route.endpoint
        for route in getattr(inner, "routes", ())
        if getattr(route, "path", "") == "/{path:path}" and "POST" in (route.methods or ())
    ]
    if len(handlers) != 1:
        return app
    (handler,) = handlers

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)

    return serve


def install() -> None:
    """Make this the protocol of each uvicorn server with no other setting: functions-framework has no option for it."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{TunedProtocol.__name__}"
