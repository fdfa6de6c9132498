"""What every function does around its own work: methods, health, keys, body limits, and errors as problem+json."""

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from typing import TypeVar

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive

from metrics_ingest import __version__, logs, server
from metrics_ingest.errors import CODES, Fault, Overloaded, RequestRefused
from metrics_ingest.http.bodies import SMALL, check_structure, gunzip
from metrics_ingest.http.cors import Cors, preflight
from metrics_ingest.http.headers import JSON, NDJSON, Headers, combined, media_type
from metrics_ingest.http.replies import Reply, problem, protocol_of
from metrics_ingest.model.validation import excerpt
from metrics_ingest.server.deadlines import Arrivals
from metrics_ingest.settings import Settings, settings
from metrics_ingest.storage.operations import Operation
from metrics_ingest.storage.quarantine import Faults, keep
from metrics_ingest.storage.writer import writer

HEALTH_TIMEOUT_S = 2.0
LARGE_BODIES = 4  # times MAX_BODY_BYTES: what all bodies that came in pieces or packed may hold together

logger = logging.getLogger(__name__)

Received = TypeVar("Received")
Handler = Callable[[bytes, Headers], Awaitable[Response]]


class Service:
    """One HTTP function: `name` is its path segment, `handler` its work, `media_types` what it reads.

    `most` is how many metrics (or the like) a body can have; what is refused of them may be kept (`rejected`).
    """

    def __init__(
        self,
        name: str,
        handler: Handler,
        media_types: tuple[bytes, ...] = (JSON,),
        most: int = 1,
        *,
        keeps_rejected: bool = False,
    ) -> None:
        self.name = name
        self._keeps_rejected = keeps_rejected
        self.settings: Settings = settings()
        server.install()
        logs.start(self.settings)
        self._handler = handler
        self._media_types = media_types
        self._most = most
        self._cors = Cors(self.settings.cors_origins) if self.settings.cors_origins else None
        self._held = 0

    async def respond(self, request: Request) -> Response:
        """Answer any request. Nothing escapes: the framework's own crash handler would answer in its own way."""
        try:
            response = await self._answer(request)
        except Exception as error:  # noqa: BLE001  # the last resort: every answer is ours
            if isinstance(error, RequestRefused):
                facts = {"function": self.name, "status": CODES[error.code].value, "code": error.code}
                logger.info("request refused", extra={"facts": {**facts, "key": request.scope.get("caller")}})
            response = problem(error)
        if self._cors:
            response.raw_headers.extend(self._cors.fields(request.scope["headers"]))
        return response

    async def _answer(self, request: Request) -> Response:
        if request.method == "POST":
            arrivals()
            headers = combined(request.scope["headers"])
            request.scope["caller"] = self._authenticate(headers)  # for the log line
            packed = self._is_packed(headers)
            message: Message = {"type": "http.request"}
            protocol = protocol_of(request.scope)
            body = protocol.take_body(request.scope) if protocol else None
            if body is None:
                message = await _in_time(request.receive())
                body = message.get("body", b"")
            if packed or message.get("more_body") or len(body) > SMALL:
                with self._hold() as take:
                    body = await _in_time(self._whole(body, message, request.receive, packed, take))
                    check_structure(body, self._most, lines=media_type(headers) == NDJSON)
                    return await self._handle(body, headers, request.scope["caller"])
            if len(body) > self.settings.max_body_bytes:
                raise self._too_large()
            return await self._handle(body, headers, request.scope["caller"])
        if request.method in ("GET", "HEAD"):
            return await self._describe(request)
        if request.method == "OPTIONS" and self._cors:
            return preflight()
        raise RequestRefused(
            Fault("method_not_allowed", f"{request.method} is not served here; send a POST"),
            headers={"Allow": "GET, HEAD, OPTIONS, POST" if self._cors else "GET, HEAD, POST"},
        )

    async def _handle(self, body: bytes, headers: Headers, caller: str | None) -> Response:
        """The handler's answer, or RequestRefused, when what was rejected has been kept."""
        faults: Faults = {}
        try:
            reply = await self._handler(body, headers)
            if isinstance(reply, Reply):
                faults = reply.rejected
            return reply
        except RequestRefused as error:
            faults = {None: error.faults}
            raise
        finally:
            if faults and self._keeps_rejected:
                await keep(self.name, caller, body, media_type(headers) == NDJSON, faults)

    async def _describe(self, request: Request) -> Response:
        if not request.scope["path"].rstrip("/").endswith("/health"):
            return Reply(HTTPStatus.OK, to_json({"function": self.name, "version": __version__, "status": "ok"}))
        await writer().write(Operation.PING, (), timeout_s=HEALTH_TIMEOUT_S)
        return Reply(HTTPStatus.OK, to_json({"function": self.name, "version": __version__, "database": "ok"}))

    def _authenticate(self, headers: Headers) -> str | None:
        """The name of the caller's key, or None where anyone may call.

        X-API-Key goes first: in front of Cloud Run's own check Authorization holds that one's token.
        """
        if not self.settings.api_keys:
            return None
        key = headers.get(b"x-api-key", b"")
        if not key:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            key = token.strip() if scheme.lower() == b"bearer" else b""
        digest = hashlib.sha256(key).digest()
        names = [known.name for known in self.settings.api_keys if hmac.compare_digest(known.digest, digest)]
        if not names or not key:
            raise RequestRefused(
                Fault("unauthorized", "send a known key as Authorization: Bearer or as X-API-Key"),
                headers={"WWW-Authenticate": "Bearer"},
            )
        return names[0]

    def _is_packed(self, headers: Headers) -> bool:
        """Whether the body is gzip. Raise RequestRefused when the headers alone say that it cannot be read."""
        sent = media_type(headers)
        if sent not in self._media_types:
            wanted = " or ".join(known.decode() for known in self._media_types)
            raise RequestRefused(
                Fault("unsupported_media_type", f"send {wanted}, not {excerpt(sent.decode('latin-1'))}")
            )
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b"gzip", b"x-gzip"):
            raise RequestRefused(
                Fault(
                    "unsupported_encoding",
                    f"send the body as it is or as gzip, not as {excerpt(encoding.decode('latin-1'))}",
                ),
                headers={"Accept-Encoding": "gzip, identity"},
            )
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.settings.max_body_bytes:
            raise self._too_large()
        return encoding != b"identity"

    async def _whole(
        self, body: bytes, message: Message, receive: Receive, packed: bool, take: Callable[[int], None]
    ) -> bytes:
        """The body that `message` began, unpacked; both sizes are held to MAX_BODY_BYTES while reading."""
        limit = self.settings.max_body_bytes
        whole = bytearray(body)
        take(len(body))
        while message.get("more_body") and len(whole) <= limit:
            message = await receive()
            piece = message.get("body", b"")
            take(len(piece))
            arrivals().received(len(piece))
            whole += piece
        if len(whole) > limit:
            raise self._too_large()
        if message["type"] == "http.disconnect":
            raise RequestRefused(Fault("malformed_json", "the body ended too early"))  # nobody is there to read it
        if not packed:
            return bytes(whole)
        unpacked = gunzip(whole, limit, self._too_large())
        take(len(unpacked))
        return unpacked

    @contextmanager
    def _hold(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes of large bodies until they are answered; all together have a limit, too."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self._held + count > LARGE_BODIES * self.settings.max_body_bytes:
                raise Overloaded
            mine += count
            self._held += count

        try:
            yield take
        finally:
            self._held -= mine

    def _too_large(self) -> RequestRefused:
        return RequestRefused(
            Fault("payload_too_large", f"the body may have {self.settings.max_body_bytes} bytes at most")
        )


@cache
def arrivals() -> Arrivals:
    """This process's, made by its first request, when the framework has set up what it does, logging included."""
    logs.configure(settings().log_level)
    return Arrivals()


async def _in_time(receiving: Awaitable[Received]) -> Received:
    """Wait for (more of) the body, but not for ever. Raise RequestRefused when it took too long."""
    waiting = arrivals()
    task = waiting.begin()
    try:
        return await receiving
    finally:
        if waiting.end(task):
            raise RequestRefused(Fault("malformed_json", "the body took too long"), headers={"Connection": "close"})
