"""What every function does around its own work: methods, liveness, health, keys, body limits, errors, CORS."""

import gc
import logging
from collections.abc import Awaitable, Callable
from functools import cache

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from metrics_ingest import __version__, logs
from metrics_ingest.errors import CODES, Fault, RequestRefused
from metrics_ingest.http.auth import authenticate
from metrics_ingest.http.bodies import Memory, Reservation, check_structure, read_body
from metrics_ingest.http.cors import Cors, check_origin, preflight
from metrics_ingest.http.functions import BY_NAME, NDJSON
from metrics_ingest.http.headers import Headers, accepted_media_type, combined
from metrics_ingest.http.replies import Reply, problem
from metrics_ingest.server.short_path import short_path
from metrics_ingest.settings import settings
from metrics_ingest.storage.quarantine import UNLISTED, Rejected, keep
from metrics_ingest.storage.writer import writer
from metrics_ingest.telemetry import telemetry

HEALTH_TIMEOUT_S = 2.0
LARGE_REPLY = 16_384  # bytes; replies above it are counted until the client has read them
FRAMEWORK_PATHS = ("/robots.txt", "/favicon.ico")  # functions-framework replies 404 to these itself

logger = logging.getLogger(__name__)

Handler = Callable[[bytes, Headers], Awaitable[Reply]]


class Service:
    """One HTTP function.

    `name` is its name in FUNCTIONS. `handler` gets each body, decompressed, with the header fields, and returns the
    reply or raises. A body holds at most `max_items` metrics (or users); with `takes_one` an object is one of them.
    With `keeps_rejected`, the metrics that the handler refuses are put in quarantine. `memory` is that of another
    service of the same function, to share it.
    """

    def __init__(
        self,
        name: str,
        handler: Handler,
        max_items: int = 1,
        *,
        keeps_rejected: bool = False,
        takes_one: bool = False,
        memory: Memory | None = None,
    ) -> None:
        self.function = BY_NAME[name]
        self.settings = settings()
        self._handler = handler
        self._max_items = max_items
        self._keeps_rejected = keeps_rejected
        self._takes_one = takes_one
        self._cors = Cors(self.settings.cors_origins) if self.settings.cors_origins else None
        self.memory = memory or Memory(self.settings.max_body_bytes)
        self._free_for_replies = self.settings.max_body_bytes
        self.telemetry = telemetry()
        logs.start(self.settings)

    async def respond(self, request: Request) -> Response:
        """Reply to any request. Raise nothing, because functions-framework would reply in a form of its own."""
        code = ""
        try:
            begin_process()
            method = request.scope["method"]
            headers = combined(request.scope["headers"])
            if not self.settings.api_keys and method != "OPTIONS":
                check_origin(headers, self._cors)
            own = method in self.function.methods
            response = await (self._work(request, headers) if own else self._other(request))
        except Exception as error:  # noqa: BLE001  # the last resort: every error reply has our form
            if isinstance(error, RequestRefused) and error.code in CODES:
                facts = {"function": self.function.name, "status": CODES[error.code].value, "code": error.code}
                more = {"key": request.scope.get("caller"), **logs.trace(request.scope["headers"])}
                logger.info("request refused", extra={"facts": facts | more})
            code, response = self._error_reply(request, error)
        if not request.scope.get("body_is_read") and short_path(request.scope) is None and _has_body(request):
            response.raw_headers.append((b"connection", b"close"))  # else uvicorn would read all of it
        if len(response.body) > LARGE_REPLY and isinstance(response, Reply):
            self._reserve(response)
        if self.telemetry:
            self.telemetry.request(self.function.name, response.status_code, code)
        if self._cors:
            response.raw_headers.extend(self._cors.fields(request.scope["headers"]))
        return response

    def _reserve(self, response: Reply) -> None:
        """Count a large reply until the client has read it; without free memory for it, send a shorter one."""
        if len(response.body) > self._free_for_replies and response.shorter:
            response.replace_body(response.shorter)
        size = len(response.body)
        self._free_for_replies -= size

        def release() -> None:
            self._free_for_replies += size

        response.release = release

    async def _other(self, request: Request) -> Response:
        if request.method in ("GET", "HEAD") and not _has_body(request):
            return await self._get(request)
        if request.method == "OPTIONS" and self._cors:
            return preflight()
        methods = " or ".join(self.function.methods)
        allowed = sorted(("GET", "HEAD", *self.function.methods, *(["OPTIONS"] if self._cors else [])))
        what = "a body with GET" if request.method == "GET" else request.method
        raise RequestRefused(
            Fault("method_not_allowed", f"{what} is not served here; send a {methods}"),
            headers={"Allow": ", ".join(allowed)},
        )

    async def _work(self, request: Request, headers: Headers) -> Response:
        caller = request.scope["caller"] = authenticate(headers, self.settings.api_keys)  # in the scope for the log
        reservation = Reservation(self.memory)
        try:
            body = await self._read(request, headers, reservation)
            return await self._handle(body, headers, caller)
        finally:
            reservation.release()

    async def _read(self, request: Request, headers: Headers, reservation: Reservation) -> bytes:
        """Return the body, decompressed and within all limits. Raise RequestRefused, Overloaded."""
        ndjson = accepted_media_type(headers, self.function.media_types) == NDJSON
        body = await read_body(request, headers, self.settings.max_body_bytes, reservation)
        is_one = self._takes_one and body.lstrip(b" \t\r\n").startswith(b"{")
        check_structure(body, 1 if is_one else self._max_items, ndjson=ndjson)
        return body

    def _error_reply(self, request: Request, error: Exception) -> tuple[str, Response]:
        """Return the reply for any exception, and its code."""
        reply = problem(error, logs.trace(request.scope["headers"]))
        return reply.code, reply

    async def _handle(self, body: bytes, headers: Headers, caller: str | None) -> Reply:
        """Return the handler's reply, after putting in quarantine what it refused."""
        rejected: Rejected | None = None
        try:
            reply = await self._handler(body, headers)
            rejected = reply.rejected
            return reply
        except RequestRefused as error:
            rejected = Rejected({0: error.faults}, [body])
            raise
        finally:
            if rejected and rejected.faults and self._keeps_rejected:
                self.count_rejected(rejected)
                await keep(self.function.name, caller, rejected, keyed=b"idempotency-key" in headers)

    def count_rejected(self, rejected: Rejected) -> None:
        """Count the metrics for `GET …/metrics`."""
        if self.telemetry:
            for faults in rejected.faults.values():
                self.telemetry.rejected(self.function.name, faults[0].code if faults else UNLISTED)

    async def _get(self, request: Request) -> Response:
        """Reply 200: liveness; on …/health after the database has replied; on …/metrics with what has been counted."""
        if request.scope["path"] in FRAMEWORK_PATHS:
            raise RequestRefused(Fault("not_found", f"nothing is served at {request.scope['path']}"))
        status = {"function": self.function.name, "version": __version__}
        if self.telemetry and request.scope["path"].rstrip("/").endswith("/metrics"):
            return Reply(200, self.telemetry.exposition(), media_type=self.telemetry.content_type)
        if not request.scope["path"].rstrip("/").endswith("/health"):
            return Reply(200, to_json({**status, "status": "ok"}))
        await writer().ping(HEALTH_TIMEOUT_S)
        return Reply(200, to_json({**status, "database": "ok"}))


def _has_body(request: Request) -> bool:
    names = dict(request.scope["headers"])
    return b"transfer-encoding" in names or names.get(b"content-length", b"0").strip(b"0") != b""


@cache
def begin_process() -> None:
    """Do what must wait for this process's first request: until then the framework forks and configures logging."""
    logs.configure(settings().log_level)
    gc.freeze()  # garbage collection leaves out what is loaded by now: see server.install
