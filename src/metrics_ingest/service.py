"""What every function does around its own work: methods, health, keys, body limits, and errors as problem+json."""

import asyncio
import hashlib
import hmac
import logging
import re
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cache
from http import HTTPStatus

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from metrics_ingest import __version__, logs
from metrics_ingest.errors import CODES, Fault, Overloaded, RequestRefused, StoreUnavailable
from metrics_ingest.limits import Arrivals
from metrics_ingest.metrics import shown
from metrics_ingest.settings import Settings, settings
from metrics_ingest.store import Call
from metrics_ingest.writer import writer

JSON = b"application/json"
NDJSON = b"application/x-ndjson"
PROBLEM_JSON = b"application/problem+json"
RETRY_AFTER_S = {"store_unavailable": 2, "overloaded": 1}
HEALTH_TIMEOUT_S = 2.0

logger = logging.getLogger(__name__)

Headers = Mapping[bytes, bytes]
Handler = Callable[[bytes, Headers], Awaitable[Response]]


class Reply(Response):
    """A response of ready bytes. Starlette's own renders and encodes what is known here already."""

    def __init__(
        self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = (), media_type: bytes = JSON
    ) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers]


class Service:
    """One HTTP function: `name` is its path segment, `handler` its work, `media_types` what it reads."""

    def __init__(self, name: str, handler: Handler, media_types: tuple[bytes, ...] = (JSON,)) -> None:
        self.name = name
        self.settings: Settings = settings()
        logs.start(self.settings)
        self._handler = handler
        self._media_types = media_types

    async def respond(self, request: Request) -> Response:
        """Answer any request. Nothing escapes: the framework's own crash handler would answer in its own way."""
        key_name = None
        try:
            if request.method == "POST":
                waiting = arrivals()
                headers = combined(request.scope["headers"])
                key_name = self._authenticate(headers)
                body = await self._read_body(headers, request.receive, waiting)
                return await self._handler(body, headers)
            if request.method in ("GET", "HEAD"):
                return await self._describe(request)
            raise RequestRefused(
                Fault("method_not_allowed", f"{request.method} is not served here; send a POST"),
                headers={"Allow": "GET, HEAD, POST"},
            )
        except Exception as error:  # noqa: BLE001  # the last resort: every answer is ours
            if isinstance(error, RequestRefused):
                facts = {"function": self.name, "status": CODES[error.code].value, "code": error.code, "key": key_name}
                logger.info("request refused", extra={"facts": facts})
            return problem(error)

    async def _describe(self, request: Request) -> Response:
        if not request.url.path.rstrip("/").endswith("/health"):
            return Reply(HTTPStatus.OK, to_json({"function": self.name, "version": __version__, "status": "ok"}))
        await writer().write(Call.PING, (), timeout_s=HEALTH_TIMEOUT_S)
        return Reply(HTTPStatus.OK, to_json({"function": self.name, "version": __version__, "database": "ok"}))

    def _authenticate(self, headers: Headers) -> str | None:
        """The name of the caller's key, or None where anyone may call."""
        if not self.settings.api_keys:
            return None
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        key = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        digest = hashlib.sha256(key).digest()
        names = [known.name for known in self.settings.api_keys if hmac.compare_digest(known.digest, digest)]
        if not names or not key:
            raise RequestRefused(
                Fault("unauthorized", "send a known key as Authorization: Bearer or as X-API-Key"),
                headers={"WWW-Authenticate": "Bearer"},
            )
        return names[0]

    async def _read_body(self, headers: Headers, receive: Receive, waiting: Arrivals) -> bytes:
        """The body, unpacked; both what was sent and what it unpacks to are held to MAX_BODY_BYTES while reading."""
        limit = self.settings.max_body_bytes
        sent = media_type(headers)
        if sent not in self._media_types:
            wanted = " or ".join(known.decode() for known in self._media_types)
            raise RequestRefused(Fault("unsupported_media_type", f"send {wanted}, not {shown(sent.decode('latin-1'))}"))
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b"gzip", b"x-gzip"):
            raise RequestRefused(
                Fault(
                    "unsupported_encoding",
                    f"send the body as it is or as gzip, not as {shown(encoding.decode('latin-1'))}",
                ),
                headers={"Accept-Encoding": "gzip, identity"},
            )
        too_large = RequestRefused(Fault("payload_too_large", f"the body may have {limit} bytes at most"))
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        task = asyncio.current_task()
        assert task is not None
        waiting.begin(task)
        try:
            message = await receive()
            body: bytes | bytearray = message.get("body", b"")
            while message.get("more_body"):
                if len(body) > limit:
                    raise too_large
                message = await receive()
                chunk = message.get("body", b"")
                waiting.received(task, len(chunk))
                body = body if isinstance(body, bytearray) else bytearray(body)
                body += chunk
        finally:
            if waiting.end(task):
                raise RequestRefused(Fault("malformed_json", "the body took too long"), headers={"Connection": "close"})
        if message["type"] == "http.disconnect":
            raise RequestRefused(Fault("malformed_json", "the body ended too early"))  # nobody is there to read it
        if len(body) > limit:
            raise too_large
        return bytes(body) if encoding == b"identity" else _gunzip(bytes(body), limit, too_large)


@cache
def arrivals() -> Arrivals:
    """This process's, made by its first request, when the framework has set up what it does, logging included."""
    logs.configure(settings().log_level)
    return Arrivals()


def combined(raw: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The header fields by lower-case name; a repeated one is one list (RFC 9110, section 5.3)."""
    headers = dict(raw)
    if len(headers) != len(raw):
        for name in headers:
            headers[name] = b", ".join(value for other, value in raw if other == name)
    return headers


def _gunzip(packed: bytes, limit: int, too_large: RequestRefused) -> bytes:
    """Unpack all members of a gzip body (RFC 1952, section 2.2)."""
    unpacked = bytearray()
    try:
        while packed:
            member = zlib.decompressobj(wbits=31)
            unpacked += member.decompress(packed, limit + 1 - len(unpacked))
            if len(unpacked) > limit:
                raise too_large
            if not member.eof:
                raise zlib.error("it ends too early")
            packed = member.unused_data
    except zlib.error as error:
        raise RequestRefused(Fault("malformed_json", f"the body is not gzip as announced: {error}")) from error
    return bytes(unpacked)


def media_type(headers: Headers) -> bytes:
    """The Content-Type without its parameters; what has none is JSON."""
    return headers.get(b"content-type", JSON).partition(b";")[0].strip().lower()


def idempotency_key(headers: Headers) -> str | None:
    """The Idempotency-Key header, if sent: 1 to 255 visible ASCII characters."""
    key = headers.get(b"idempotency-key")
    if key is None:
        return None
    if not re.fullmatch(rb"[!-~]{1,255}", key):
        raise RequestRefused(
            Fault("invalid_field", "Idempotency-Key must be 1 to 255 visible ASCII characters", "Idempotency-Key")
        )
    return key.decode()


def fault_entry(fault: Fault) -> dict[str, str | None]:
    """A fault as it stands in a list of errors."""
    return {"code": fault.code, "field": fault.field, "metric_id": fault.metric_id, "detail": fault.detail}


def problem(error: Exception) -> Response:
    """The one place where an exception becomes an answer (RFC 9457). What is unexpected is logged, not told."""
    headers: dict[str, str] = {}
    faults: tuple[Fault, ...]
    if isinstance(error, RequestRefused):
        faults, headers = error.faults, error.headers
    elif isinstance(error, StoreUnavailable | Overloaded):
        faults, headers = error.faults, {"Retry-After": str(RETRY_AFTER_S[error.code])}
    else:
        correlation_id = str(uuid.uuid4())
        reason = getattr(error, "reason", None)
        facts = {"correlation_id": correlation_id, "reason": reason}
        logger.error("internal error", exc_info=None if reason else error, extra={"facts": facts})
        faults = (Fault("internal_error", f"an internal error; its correlation id is {correlation_id}"),)
    status = CODES[faults[0].code]
    body = {
        "type": f"urn:metrics-ingest:problem:{faults[0].code}",
        "title": status.phrase,
        "status": status.value,
        "detail": faults[0].detail,
        "code": faults[0].code,
        "errors": [fault_entry(fault) for fault in faults],
    }
    fields = ((name.lower().encode(), value.encode()) for name, value in headers.items())
    return Reply(status, to_json(body), fields, PROBLEM_JSON)
