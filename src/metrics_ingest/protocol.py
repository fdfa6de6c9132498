"""An end to what the HTTP server collects before anyone has seen the request: uvicorn with httptools has none itself.

functions-framework gives no way to choose a protocol: importing this module puts it in place.
"""

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES = 65_536  # request line and header fields, or the trailer fields, of one request
PIPELINED = 64  # requests of one connection that wait for the answer to an earlier one


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's own; what has come since the last end of a head or piece of a body is counted."""

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
        super().on_headers_complete()
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


# Here every uvicorn looks that was told nothing else.
uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHttp.__name__}"
