"""The errors of a request: one class for each reaction of the sender, and all codes with their HTTP status."""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from pydantic_core import to_json

CODES: dict[str, HTTPStatus] = {
    "malformed_json": HTTPStatus.BAD_REQUEST,
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "forbidden_origin": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "metric_conflict": HTTPStatus.CONFLICT,
    "payload_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "too_many_metrics": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "unsupported_encoding": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "missing_field": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unknown_field": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_uuid": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_timestamp": HTTPStatus.UNPROCESSABLE_ENTITY,
    "timestamp_out_of_range": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_value": HTTPStatus.UNPROCESSABLE_ENTITY,
    "value_out_of_range": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_metric_type": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unknown_metric_type": HTTPStatus.UNPROCESSABLE_ENTITY,
    "cumulative_temporality": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unknown_user": HTTPStatus.UNPROCESSABLE_ENTITY,
    "invalid_field": HTTPStatus.UNPROCESSABLE_ENTITY,
    "empty_batch": HTTPStatus.UNPROCESSABLE_ENTITY,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "store_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "overloaded": HTTPStatus.SERVICE_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason to reject a request or one metric of it; `code` is a key of CODES."""

    code: str
    detail: str
    field: str | None = None
    metric_id: str | None = None

    def entry(self) -> dict[str, str | None]:
        """Return the fault as an entry of `errors`."""
        return {"code": self.code, "field": self.field, "metric_id": self.metric_id, "detail": self.detail}


def problem_body(faults: Sequence[Fault]) -> bytes:
    """Return the problem+json document (RFC 9457) of a refused request."""
    code = faults[0].code
    status = CODES[code]
    return to_json({
        "type": f"urn:metrics-ingest:problem:{code}",
        "title": status.phrase,
        "status": status.value,
        "detail": faults[0].detail,
        "code": code,
        "errors": [fault.entry() for fault in faults],
    })  # fmt: skip


class IngestError(Exception):
    """Base of the errors that the HTTP layer turns into problem+json replies."""

    faults: tuple[Fault, ...]

    def __init__(self, *faults: Fault) -> None:
        super().__init__(faults[0].detail)
        self.faults = faults

    @property
    def code(self) -> str:
        """The code of the first fault, which is that of the reply."""
        return self.faults[0].code


class RequestRefused(IngestError):
    """The request is invalid: sent again unchanged, it is refused again (4xx)."""

    def __init__(self, *faults: Fault, headers: dict[str, str] | None = None) -> None:
        super().__init__(*faults)
        self.headers = headers or {}


class StoreUnavailable(IngestError):
    """The database cannot be reached, or not in time: the same request may be sent again (503)."""

    def __init__(self, reason: str) -> None:
        super().__init__(Fault("store_unavailable", "the database is unavailable; send the same request again"))
        self.reason = reason  # for the log only: it may hold a driver's message


class ConnectionLost(StoreUnavailable):
    """The connection was lost during a transaction that may have been committed."""


class Overloaded(IngestError):
    """More metrics wait than WRITE_QUEUE allows; nothing of the request was stored (503)."""

    def __init__(self) -> None:
        super().__init__(Fault("overloaded", "too many metrics are waiting to be written; send the same request again"))


class StatementRefused(IngestError):
    """The database refused a statement for a reason that validation should have found: a defect (500)."""

    def __init__(self, reason: str) -> None:
        super().__init__(Fault("internal_error", "an internal error"))
        self.reason = reason
