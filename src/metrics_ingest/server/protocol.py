"""The HTTP server's protocol, within bounds and without detours: uvicorn's with httptools, which has neither.

Bounds: an end to what is collected before anyone has seen the request. Detours: a POST goes straight to the function's
handler, takes a body that is there already, and is answered in one piece. Each has the usual way to fall back to.
functions-framework gives no way to choose a protocol: importing this module puts it in place.
"""

import logging
import secrets
from collections.abc import Iterable, Iterator
from functools import cache
from http import HTTPStatus
from itertools import count

import uvicorn.config
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES = 65_536  # request line and header fields, or the trailer fields, of one request
PIPELINED = 64  # requests of one connection that wait for the answer to an earlier one
EXECUTION_ID = b"function-execution-id"


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's own; what has come since the last end of a head or piece of a body is counted.

    A request's scope has it as the extension "metrics_ingest" (ASGI, Extensions): see `take_body` and `answer`.
    """

    _unseen = 0
    _at_work: tuple[RequestResponseCycle, ...] = ()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        self._unseen += len(data)
        super().data_received(data)
        if self._unseen > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of a request may have {HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """Pass the request on to the function. What is raised here is answered with 400."""
        self._unseen = 0
        if len(self.pipeline) >= PIPELINED:
            raise ValueError
        if self.parser.get_method() == b"POST":
            self.app = straight(self.config.loaded_app)
            if EXECUTION_ID not in dict(self.headers):  # for what the function logs; others get theirs on their way
                self.headers.append((EXECUTION_ID, b"%012x" % next(execution_ids())))
        else:
            self.app = self.config.loaded_app
        super().on_headers_complete()
        # Not the cycle: that refers to the scope, and only the garbage collector would ever part the two.
        # An object with methods, where uvicorn's types know only dicts: ASGI leaves to the server what an extension is.
        self.scope["extensions"] = {"metrics_ingest": self}  # type: ignore[dict-item]
        self._at_work = (*(cycle for cycle in self._at_work if not cycle.response_complete), self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let what is still at work answer nobody: uvicorn tells the last request of a connection only."""
        super().connection_lost(exc)
        for cycle in self._at_work:
            cycle.disconnected = True

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on."""
        self._unseen = 0
        super().on_body(body)

    def take_body(self, scope: Scope) -> bytes | None:
        """The whole body of the connection's last request, if that is this one and all of it has come."""
        cycle = self.cycle
        if cycle.scope is not scope or cycle.more_body or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def answer(self, scope: Scope, status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        """Answer in one piece: one packet instead of two, past every layer that would look on. Return whether it was.

        That is left to the usual way where more requests of the connection wait, where the answer has no body or ends
        the connection, where it is logged, and where the client does not take what it is sent.
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
def execution_ids() -> Iterator[int]:
    """This process's, from its first request on: before that it may fork."""
    return count(secrets.randbits(47))


@cache
def straight(app: ASGIApp) -> ASGIApp:
    """The app without what stands before functions-framework's handler of a function, to which every POST comes.

    That is a fifth of the whole request (docs/benchmarks.md): eight layers and four routes, of which a function that
    answers its own errors needs none. An app of any other shape is left as it is.
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
    """Make it the protocol of every server that was told of no other."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHttp.__name__}"
