"""Replies: a response of ready bytes, the reply of a batch, and errors as problem+json (RFC 9457)."""

import logging
import uuid
from collections.abc import Iterable

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from metrics_ingest.errors import CODES, Fault, Overloaded, RequestRefused, StoreUnavailable
from metrics_ingest.http.functions import JSON
from metrics_ingest.server.fast_path import fast_path
from metrics_ingest.storage.ingest import Report
from metrics_ingest.storage.quarantine import Rejected

PROBLEM_JSON = b"application/problem+json"
RETRY_AFTER_S = {"store_unavailable": 2, "overloaded": 1}

logger = logging.getLogger(__name__)


class Reply(Response):
    """A response whose body and headers are bytes already, which saves Starlette's rendering and encoding."""

    rejected: Rejected | None = None  # of a batch: what the service puts in quarantine

    def __init__(
        self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = (), media_type: bytes = JSON
    ) -> None:
        self.status_code = status
        self.body: bytes = body
        self.background = None
        self.raw_headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply, in one write if possible. A client that has disconnected is no error."""
        try:
            connection = fast_path(scope)
            if not (connection and connection.send_reply(scope, self.status_code, self.raw_headers, self.body)):
                await super().__call__(scope, receive, send)
        except RuntimeError:  # uvloop's "the handler is closed", when the client has disconnected with requests pending
            logger.debug("client disconnected before the reply")


def report_body(report: Report, *, strict: bool = False) -> bytes:
    """Return the JSON reply of /ingest_batch/.

    received = stored + duplicates + rejected. In the reply to a refused strict batch, of which nothing is stored,
    `valid` is the number of the other metrics, so that received = rejected + valid.
    """
    rejected = len(report.faults)
    return to_json({
        "message": f"{report.stored} of {report.received} metrics stored",
        "received": report.received,
        "stored": report.stored,
        "duplicates": report.duplicates,
        "rejected": rejected,
        **({"valid": report.received - rejected} if strict and rejected else {}),
        "errors": [
            {"index": position, **error_entry(fault)}
            for position in sorted(report.faults)
            for fault in report.faults[position]
        ],
    })  # fmt: skip


def error_entry(fault: Fault) -> dict[str, str | None]:
    """Return a fault as an entry of `errors`."""
    return {"code": fault.code, "field": fault.field, "metric_id": fault.metric_id, "detail": fault.detail}


def problem(error: Exception) -> Reply:
    """Return the reply for any exception (RFC 9457); this is the only place that makes one.

    An unexpected exception is logged with a correlation id, and the reply holds that id only.
    """
    headers: dict[str, str] = {}
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
    code = faults[0].code
    status = CODES[code]
    body = {
        "type": f"urn:metrics-ingest:problem:{code}",
        "title": status.phrase,
        "status": status.value,
        "detail": faults[0].detail,
        "code": code,
        "errors": [error_entry(fault) for fault in faults],
    }
    fields = ((name.lower().encode(), value.encode()) for name, value in headers.items())
    return Reply(status, to_json(body), fields, PROBLEM_JSON)
