"""uvicorn's HTTP protocol (httptools) with limits, as the RFCs have it, and with a short path for all requests.

Limits: on the bytes that are buffered before a function sees the request, on pipelined requests, on what is read after
the reply, and on the time that a client may take to read one.
Short path: a request goes directly to the function's handler; a body that has arrived is taken without waiting; a reply
is sent in one write. Wherever one of these is not possible, uvicorn's own way is used.
"""

import logging
import random
from asyncio import TimerHandle, Transport
from collections.abc import Iterable
from http import HTTPStatus

import httptools
import uvicorn.config
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from metrics_ingest.errors import CODES, Fault, problem_body
from metrics_ingest.server.handler import without_middleware
from metrics_ingest.server.short_path import EXTENSION
from metrics_ingest.settings import settings
from metrics_ingest.shutdown import shutdown_deadline

HEAD_BYTES = 65_536  # of one request: its request line and header fields, or its trailer fields
PIPELINED_REQUESTS = 64  # of one connection, waiting for the reply to an earlier one
DISCARDED_BYTES = 262_144  # of the body after a 401 or 403; after others MAX_BODY_BYTES. Then the connection is closed
STALLED_S = 10.0  # a client that reads nothing of its replies for so long is disconnected,
STALLED_AT_SHUTDOWN_S = 1.0  # and sooner during a shutdown, which must not wait for it
EXECUTION_ID = b"function-execution-id"


class TunedProtocol(HttpToolsProtocol):
    """One connection. A request's scope refers to it as the extension `metrics_ingest`: see short_path.py."""

    _unparsed = 0  # bytes since the last complete head, or the last part of a body
    _may_discard = DISCARDED_BYTES  # so many more bytes of the current request's body may come after its reply
    _in_progress: tuple[RequestResponseCycle, ...] = ()
    _refusal: bytes | None = None  # the last reply of this connection, to what is not HTTP; after it nothing is read
    _patience_s = STALLED_S
    _stalled: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Serve the function without the layers around it."""
        super().connection_made(transport)
        self.app = without_middleware(self.app)

    def data_received(self, data: bytes) -> None:
        """Parse `data`. What is not HTTP, and a head larger than HEAD_BYTES, is refused after all earlier requests."""
        self._unset_keepalive_if_required()
        if self._refusal is not None:
            return
        self._unparsed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(Fault("malformed_json", f"this is not a request as RFC 9112 has it: {error}"))
        if self._unparsed > HEAD_BYTES:
            self._refuse(Fault("malformed_json", f"the head of a request may have {HEAD_BYTES} bytes at most"))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse a request again without its Upgrade, as RFC 9110, section 7.8, has it: no other protocol is served.

        The parser takes what follows such a head for the other protocol, even a body; with the parser's next request
        hidden in that body, another client could get this one's reply. CONNECT would be a tunnel: it is refused.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(Fault("method_not_allowed", "CONNECT is not served here; send a POST"))
            return
        content = [method, b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(token for token in value.split(b",") if token.strip().lower() != b"upgrade")
            if name != b"upgrade":
                content += (name, b": ", value.replace(b"\r", b" ").replace(b"\n", b" "), b"\r\n")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.data_received(b"".join((*content, b"\r\n", rest)))

    def on_headers_complete(self) -> None:
        """Start the function. Raise ValueError, which `data_received` refuses, for too many requests."""
        self._unparsed = 0
        if self.parser.should_upgrade():
            return
        if len(self.pipeline) >= PIPELINED_REQUESTS:
            raise ValueError
        if self.url == b"*":  # of OPTIONS (RFC 9112, section 3.2.4), which uvicorn cannot parse
            self.url = b"/"
        if EXECUTION_ID not in dict(self.headers):  # the middleware would add it; the function's log lines hold it
            self.headers.append((EXECUTION_ID, b"%012x" % random.getrandbits(48)))  # seeded anew after a fork
        super().on_headers_complete()
        self.headers = []  # for the trailer fields, which must not become header fields (RFC 9110, section 6.5.1)
        # Not the cycle: it refers to the scope, and only the garbage collector could free such a pair.
        # uvicorn's types allow only dicts here; ASGI leaves the value of an extension to the server.
        self.scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]
        self._in_progress = (*self._unanswered(), self.cycle)

    def on_body(self, body: bytes) -> None:
        """Pass on a part of a body. After the reply some of it is discarded, so that the client reads the reply."""
        self._unparsed = 0
        super().on_body(body)
        if self.cycle.response_complete:
            self._may_discard -= len(body)
            if self._may_discard < 0:
                self.transport.close()

    def on_message_complete(self) -> None:
        """Mark the body as complete."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the next pipelined request, or send the refusal of what came after the last one."""
        super().on_response_complete()
        if self._refusal is not None:
            self.flow.pause_reading()
            self._send_refusal()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's closes the connection, always
        """Keep the connection open if a complete request waits for its reply: the client has only ended its side."""
        waiting = self._drop_unfinished()
        if not waiting or self.scheme == "https":
            return False
        waiting[-1].keep_alive = False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Mark all requests in progress as disconnected, because uvicorn marks only the connection's last."""
        super().connection_lost(exc)
        if self._stalled:
            self._stalled.cancel()
        for cycle in self._in_progress:
            cycle.disconnected = True

    def _unanswered(self) -> list[RequestResponseCycle]:
        return [cycle for cycle in self._in_progress if not cycle.response_complete]

    def _refuse(self, fault: Fault) -> None:
        """Plan the connection's last reply: nothing that comes after it is parsed."""
        if self._refusal is not None or self.transport.is_closing():
            return
        self.logger.warning("Invalid HTTP request received.")  # uvicorn's own line
        status, body = CODES[fault.code], problem_body([fault])
        fields = [
            *self.server_state.default_headers,
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            fields.append((b"allow", b"GET, HEAD, POST"))
        head = b"".join(b"%s: %s\r\n" % field for field in fields)
        self._refusal = b"%s%s\r\n%s" % (STATUS_LINE[status], head, body)
        self.flow.pause_reading()
        self._drop_unfinished()
        self._send_refusal()

    def _send_refusal(self) -> None:
        """Send the refusal and close, if all earlier requests have been answered."""
        if not self._unanswered() and self._refusal and not self.transport.is_closing():
            self.transport.write(self._refusal)
            self.transport.close()

    def _drop_unfinished(self) -> list[RequestResponseCycle]:
        """Drop the last request if its body cannot be completed any more. Return those that wait for their replies."""
        unanswered = self._unanswered()
        if unanswered and unanswered[-1].more_body:
            unfinished = unanswered.pop()
            unfinished.disconnected = True
            unfinished.message_event.set()
            if self.pipeline and self.pipeline[0][0] is unfinished:
                self.pipeline.popleft()
            self._in_progress = tuple(unanswered)
        return unanswered

    def pause_writing(self) -> None:
        """Note that replies wait for the client to read."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Note that the client has read most of them."""
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also if the client does not read the last reply."""
        super().timeout_keep_alive_handler()
        self._watch()

    def shutdown(self) -> None:
        """Close the connection when all is answered, and without waiting for a client that reads nothing."""
        super().shutdown()
        self._patience_s = STALLED_AT_SHUTDOWN_S
        self._watch()

    def _watch(self) -> None:
        """Disconnect the client when it has read nothing for `_patience_s`."""
        if self._stalled:
            self._stalled.cancel()
        waiting = self.transport.get_write_buffer_size()
        if waiting:
            self._stalled = self.loop.call_later(self._patience_s, self._check, waiting)

    def _check(self, before: int) -> None:
        if self.transport.get_write_buffer_size() >= before or self.loop.time() > shutdown_deadline().until:
            self.transport.abort()
        else:
            self._watch()

    async def drained(self) -> None:
        """Wait until the client has read its replies, or is disconnected."""
        await self.flow.drain()

    def has_whole_body(self, scope: Scope) -> bool:
        """Return whether nothing more of the request can arrive."""
        return self.cycle.scope is not scope or not self.cycle.more_body

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
        if cycle.more_body:
            refused = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
            self._may_discard = DISCARDED_BYTES if refused else settings().max_body_bytes
        cycle.response_started = cycle.response_complete = True
        cycle.transport.write(b"".join(content))
        cycle.message_event.set()
        cycle.on_response()
        return True


def install() -> None:
    """Make this the protocol of each uvicorn server with no other setting: functions-framework has no option for it."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{TunedProtocol.__name__}"
