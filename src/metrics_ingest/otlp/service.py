"""What OTLP/HTTP asks of a service beside storing: paths, encodings, and replies in the type of the request."""

import zlib
from collections.abc import Awaitable, Callable
from functools import partial

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.http.bodies import Memory, Reservation, read_body
from metrics_ingest.http.functions import JSON
from metrics_ingest.http.headers import Headers, accepted_media_type, combined, media_type
from metrics_ingest.http.replies import Reply
from metrics_ingest.http.service import Service
from metrics_ingest.model.validation import excerpt
from metrics_ingest.otlp.replies import status
from metrics_ingest.otlp.signals import Signal

SignalHandler = Callable[[Signal, bytes, Headers], Awaitable[Reply]]


class OtlpService(Service):
    """The service of one signal. It has the methods, keys, limits and CORS of every service."""

    def __init__(self, name: str, signal: Signal, handler: SignalHandler, memory: Memory | None = None) -> None:
        super().__init__(name, partial(handler, signal), keeps_rejected=True, memory=memory)
        self._signal = signal

    @classmethod
    def of_each_signal(cls, name: str, handler: SignalHandler) -> dict[Signal, "OtlpService"]:
        """Return the services of a function, which share its memory for bodies."""
        first = cls(name, Signal.NONE, handler)
        return {signal: cls(name, signal, handler, first.memory) for signal in Signal}

    async def _work(self, request: Request, headers: Headers) -> Response:
        if self._signal is Signal.NONE:
            detail = f"{excerpt(request.scope['path'])} is not served: send metrics to v1/metrics and logs to v1/logs"
            raise RequestRefused(Fault("not_found", detail))
        return await super()._work(request, headers)

    async def _read(self, request: Request, headers: Headers, reservation: Reservation) -> bytes:
        accepted_media_type(headers, self.function.media_types)
        limit = self.settings.max_body_bytes
        if not _is_deflate(headers):
            return await read_body(request, headers, limit, reservation)
        plain = {name: value for name, value in headers.items() if name != b"content-encoding"}
        body = inflate(await read_body(request, plain, limit, reservation), limit)
        reservation.add(len(body))
        return body

    def _error_reply(self, request: Request, error: Exception) -> tuple[str, Response]:
        code, reply = super()._error_reply(request, error)
        facts = from_json(bytes(reply.body))
        sent = media_type(combined(request.scope["headers"]))
        chosen = sent if sent in self.function.media_types else JSON
        return code, status(reply, chosen, f"{code}: {facts['detail']}")


def inflate(packed: bytes, limit: int) -> bytes:
    """Decompress a body that is encoded as `deflate`, which is zlib's format (RFC 9110, section 8.4.1.2).

    Raise RequestRefused: payload_too_large beyond `limit` bytes, malformed_json for what is not zlib.
    """
    member = zlib.decompressobj()
    try:
        body = member.decompress(packed, limit + 1)
    except zlib.error as error:
        raise RequestRefused(Fault("malformed_json", f"the body is not deflate as announced: {error}")) from error
    if len(body) > limit:
        raise RequestRefused(Fault("payload_too_large", f"the body may have {limit} bytes at most"))
    if not member.eof or member.unused_data:
        raise RequestRefused(Fault("malformed_json", "the body is not deflate as announced: it has another length"))
    return body


def _is_deflate(headers: Headers) -> bool:
    """Return whether the body is encoded as deflate. Raise RequestRefused (unsupported_encoding)."""
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if encoding not in (b"", b"identity", b"gzip", b"x-gzip", b"deflate"):
        detail = f"send the body as it is, as gzip or as deflate, not as {excerpt(encoding.decode('latin-1'))}"
        fault = Fault("unsupported_encoding", detail)
        raise RequestRefused(fault, headers={"Accept-Encoding": "gzip, deflate, identity"})
    return encoding == b"deflate"
