"""Replies: ready bytes, the account of a batch, and errors as problem+json (RFC 9457)."""

import logging
import uuid
from collections.abc import Iterable
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from metrics_ingest.errors import CODES, Fault, Overloaded, RequestRefused, StoreUnavailable
from metrics_ingest.http.headers import JSON
from metrics_ingest.storage.ingest import Report
from metrics_ingest.storage.quarantine import Faults

if TYPE_CHECKING:
    from metrics_ingest.server.protocol import BoundedHttp

PROBLEM_JSON = b"application/problem+json"
RETRY_AFTER_S = {"store_unavailable": 2, "overloaded": 1}

logger = logging.getLogger(__name__)


class Reply(Response):
    """A response of ready bytes. Starlette's own renders and encodes what is known here already."""

    rejected: Faults = MappingProxyType({})  # of a batch that was answered: for `rejected.keep`

    def __init__(
        self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = (), media_type: bytes = JSON
    ) -> None:
        self.status_code = status
        self.body: bytes = body
        self.background = None
        self.raw_headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, if somebody is there: uvicorn overlooks that a client with more requests behind has gone."""
        try:
            protocol = protocol_of(scope)
            if not (protocol and protocol.answer(scope, self.status_code, self.raw_headers, self.body)):
                await super().__call__(scope, receive, send)
        except RuntimeError:  # uvloop's "the handler is closed"
            logger.debug("the client has gone")


def report_body(report: Report) -> bytes:
    """The JSON reply of /ingest_batch/."""
    return to_json({
        "message": f"{report.stored} of {report.received} metrics stored",
        "received": report.received,
        "stored": report.stored,
        "duplicates": report.duplicates,
        "rejected": len(report.faults),
        "errors": [
            {"index": position, **fault_entry(fault)}
            for position in sorted(report.faults)
            for fault in report.faults[position]
        ],
    })  # fmt: skip


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


def protocol_of(scope: Scope) -> "BoundedHttp | None":
    """The connection of the request, if it is served by our own protocol."""
    extensions: dict[str, BoundedHttp] = scope.get("extensions", {})
    return extensions.get("metrics_ingest")
