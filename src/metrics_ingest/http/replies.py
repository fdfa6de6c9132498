"""Replies: a response of ready bytes, the reply of a batch, and errors as problem+json (RFC 9457)."""

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from types import MappingProxyType
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from metrics_ingest.errors import (
    CODES,
    Fault,
    Overloaded,
    RequestRefused,
    StatementRefused,
    StoreUnavailable,
    problem_body,
)
from metrics_ingest.http.functions import JSON
from metrics_ingest.model.validation import MAX_LISTED
from metrics_ingest.server.short_path import short_path
from metrics_ingest.storage.ingest import Report
from metrics_ingest.storage.quarantine import Rejected

PROBLEM_JSON = b"application/problem+json"
RETRY_AFTER_S = {"store_unavailable": 2, "overloaded": 1}

logger = logging.getLogger(__name__)


class Reply(Response):
    """A response whose body and headers are bytes already, which saves Starlette's rendering and encoding."""

    code = ""  # of a problem
    rejected: Rejected | None = None  # of a batch: what the service puts in quarantine
    shorter = b""  # a body to send instead when memory is short
    release: Callable[[], None] | None = None  # to be called when the client has read the reply

    def __init__(
        self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = (), media_type: bytes = JSON
    ) -> None:
        self.status_code = status
        self.body: bytes = body
        self.background = None
        self.raw_headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers]

    def replace_body(self, body: bytes) -> None:
        """Send `body` instead."""
        self.body = body
        self.raw_headers[1] = (b"content-length", b"%d" % len(body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply, in one write if possible. A client that has disconnected is no error."""
        try:
            connection = short_path(scope)
            if not (connection and connection.send_reply(scope, self.status_code, self.raw_headers, self.body)):
                await super().__call__(scope, receive, send)
            if self.release and connection:
                await connection.drained()
        except RuntimeError:  # uvloop's "the handler is closed", when the client has disconnected with requests pending
            logger.debug("client disconnected before the reply")
        finally:
            if self.release:
                self.release()


def report_reply(report: Report, *, strict: bool = False) -> Reply:
    """Return the reply of /ingest_batch/. Of more than MAX_LISTED faults it lists the first one of each metric.

    received = stored + duplicates + rejected. In the reply to a refused strict batch, of which nothing is stored,
    `valid` is the number of the other metrics, so that received = rejected + valid.
    """
    rejected = len(report.faults)
    counts = {
        "message": f"{report.stored} of {report.received} metrics stored",
        "received": report.received,
        "stored": report.stored,
        "duplicates": report.duplicates,
        "rejected": rejected,
        **({"valid": report.received - rejected} if strict and rejected else {}),
    }
    applied = [(b"preference-applied", b"handling=strict")] if strict else []
    return accounts_reply(report.status, counts, report.faults, report.fault_count, applied)


def accounts_reply(
    status: HTTPStatus,
    counts: Mapping[str, object],
    faults: Mapping[int, Sequence[Fault]],
    fault_count: int,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> Reply:
    """Return a reply with `counts` and the faults of each item by position, at most MAX_LISTED of all `fault_count`."""
    per_item = None if fault_count <= MAX_LISTED else 1
    found = ((position, fault) for position in sorted(faults) for fault in faults[position][:per_item])
    errors = [{"index": position, **fault.entry()} for position, fault in islice(found, MAX_LISTED)]

    def body(errors: list[dict[str, Any]]) -> bytes:
        omitted = {"errors_omitted": fault_count - len(errors)} if fault_count > len(errors) else {}
        return to_json({**counts, "errors": errors, **omitted})

    reply = Reply(status, body(errors), headers)
    if errors:
        reply.shorter = body([])
    return reply


def problem(error: Exception, trace: Mapping[str, str] = MappingProxyType({})) -> Reply:
    """Return the reply for any exception (RFC 9457); this is the only place that makes one.

    An unexpected exception is logged with a correlation id and the fields of `trace`, and the reply holds that id only.
    """
    headers: dict[str, str] = {}
    if isinstance(error, RequestRefused) and error.code in CODES:
        faults, headers = error.faults, error.headers
    elif isinstance(error, StoreUnavailable | Overloaded):
        faults, headers = error.faults, {"Retry-After": str(RETRY_AFTER_S[error.code])}
    else:
        correlation_id = str(uuid.uuid4())
        reason = error.reason if isinstance(error, StatementRefused) else None  # others' may hold anything
        facts = {"correlation_id": correlation_id, "reason": reason, **trace}
        logger.error("internal error", exc_info=error, extra={"facts": facts})
        faults = (Fault("internal_error", f"an internal error; its correlation id is {correlation_id}"),)
    fields = ((name.lower().encode(), value.encode()) for name, value in headers.items())
    reply = Reply(CODES[faults[0].code], problem_body(faults), fields, PROBLEM_JSON)
    reply.code = faults[0].code
    return reply
