"""What every function does around its own work: methods, health, keys, body limits, and errors as problem+json."""

import hashlib
import hmac
import json
import logging
import uuid
import zlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from metrics_ingest import __version__
from metrics_ingest.errors import CODES, Fault, IngestError, Overloaded, RequestRefused, StoreUnavailable
from metrics_ingest.settings import Settings, settings
from metrics_ingest.store import Call
from metrics_ingest.writer import writer

JSON = "application/json"
NDJSON = "application/x-ndjson"
RETRY_AFTER_S = {"store_unavailable": 2, "overloaded": 1}
HEALTH_TIMEOUT_S = 2.0

logger = logging.getLogger(__name__)

Handler = Callable[[bytes, Headers], Awaitable[Response]]


class Reply(Response):
    """A response of ready bytes. Starlette's own renders and encodes what is known here already."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str] | None = None, media_type: str = JSON) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [
            (b"content-type", media_type.encode()),
            (b"content-length", str(len(body)).encode()),
            *((name.lower().encode(), value.encode("latin-1", "replace")) for name, value in (headers or {}).items()),
        ]


class Service:
    """One HTTP function: `name` is its path segment, `handler` its work, `media_types` what it reads."""

    def __init__(self, name: str, handler: Handler, media_types: tuple[str, ...] = (JSON,)) -> None:
        self.name = name
        self.settings: Settings = settings()
        self._handler = handler
        self._media_types = media_types

    async def respond(self, request: Request) -> Response:
        """Answer any request. Nothing escapes: the framework's own crash handler would answer in its own way."""
        try:
            if request.method == "POST":
                self._authenticate(request.headers)
                body = await self._read_body(request)
                reply = await self._handler(body, request.headers)
            elif request.method in ("GET", "HEAD"):
                reply = await self._describe(request)
            else:
                raise RequestRefused(
                    Fault("method_not_allowed", f"{request.method} is not served here; send a POST"),
                    headers={"Allow": "GET, HEAD, POST"},
                )
        except IngestError as error:
            reply = problem(error)
        except ClientDisconnect:
            reply = Reply(HTTPStatus.BAD_REQUEST, b"")  # nobody is there to read it
        except Exception as error:  # noqa: BLE001  # the last resort: every answer is ours
            reply = problem(error)
        return reply

    async def _describe(self, request: Request) -> Response:
        if not request.url.path.rstrip("/").endswith("/health"):
            return Reply(HTTPStatus.OK, to_json({"function": self.name, "version": __version__, "status": "ok"}))
        await writer().write(Call.PING, ())
        return Reply(HTTPStatus.OK, to_json({"function": self.name, "version": __version__, "database": "ok"}))

    def _authenticate(self, headers: Headers) -> str | None:
        """The name of the caller's key, or None where anyone may call."""
        if not self.settings.api_keys:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        names = [known.name for known in self.settings.api_keys if hmac.compare_digest(known.digest, digest)]
        if not names or not key:
            raise RequestRefused(
                Fault("unauthorized", "send a known key as Authorization: Bearer or as X-API-Key"),
                headers={"WWW-Authenticate": "Bearer"},
            )
        return names[0]

    async def _read_body(self, request: Request) -> bytes:
        """The body, unpacked; both what was sent and what it unpacks to are held to MAX_BODY_BYTES while reading."""
        headers, limit = request.headers, self.settings.max_body_bytes
        media_type = headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if media_type not in self._media_types:
            raise RequestRefused(
                Fault("unsupported_media_type", f"send {' or '.join(self._media_types)}, not {media_type[:60]!r}")
            )
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip"):
            raise RequestRefused(
                Fault("unsupported_encoding", f"send the body as it is or as gzip, not as {encoding[:60]!r}"),
                headers={"Accept-Encoding": "gzip, identity"},
            )
        too_large = RequestRefused(Fault("payload_too_large", f"the body may have {limit} bytes at most"))
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        chunks = []
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise too_large
            chunks.append(chunk)
        body = b"".join(chunks)
        return body if encoding == "identity" else _gunzip(body, limit, too_large)


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


def idempotency_key(headers: Headers) -> str | None:
    """The Idempotency-Key header, if sent: 1 to 255 visible ASCII characters."""
    key = headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= 255 and all("!" <= character <= "~" for character in key)):
        raise RequestRefused(
            Fault("invalid_field", "Idempotency-Key must be 1 to 255 visible ASCII characters", "Idempotency-Key")
        )
    return key


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
        logger.error("internal error %s: %s", correlation_id, reason or "", exc_info=None if reason else error)
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
    return Reply(status, json.dumps(body).encode(), headers, "application/problem+json")
