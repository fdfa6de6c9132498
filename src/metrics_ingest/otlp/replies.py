"""The replies of OTLP/HTTP, in the type of the request: success, partial success, and google.rpc.Status for errors."""

from http import HTTPStatus

from pydantic_core import to_json
from starlette.responses import Response

from metrics_ingest.http.functions import JSON, PROTOBUF
from metrics_ingest.http.replies import Reply
from metrics_ingest.model.validation import excerpt
from metrics_ingest.otlp.signals import Signal
from metrics_ingest.otlp.storing import Outcome

# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
CODES = {
    HTTPStatus.BAD_REQUEST: 3,  # INVALID_ARGUMENT
    HTTPStatus.UNAUTHORIZED: 16,  # UNAUTHENTICATED
    HTTPStatus.NOT_FOUND: 5,  # NOT_FOUND
    HTTPStatus.METHOD_NOT_ALLOWED: 12,  # UNIMPLEMENTED
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: 8,  # RESOURCE_EXHAUSTED
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: 3,
    HTTPStatus.SERVICE_UNAVAILABLE: 14,  # UNAVAILABLE
}
INTERNAL = 13
REJECTED = {Signal.METRICS: "rejectedDataPoints", Signal.LOGS: "rejectedLogRecords"}  # the count's field in JSON
SHOWN_FAULTS = 3  # in the message of a partial success, which SDKs log as one line


def success(signal: Signal, media_type: bytes, outcome: Outcome) -> Reply:
    """Return 200, with `partial_success` if records are refused."""
    refused = len(outcome.refused)
    if media_type == PROTOBUF:
        partial = _field(1, refused) + _field(2, _message(outcome).encode()) if refused else b""
        return Reply(200, _field(1, partial) if refused else b"", media_type=media_type)
    if not refused:
        return Reply(200, b"{}")
    # An int64 is text in protobuf's JSON.
    return Reply(200, to_json({"partialSuccess": {REJECTED[signal]: str(refused), "errorMessage": _message(outcome)}}))


def status(problem: Response, media_type: bytes, detail: str) -> Reply:
    """Return a reply with a problem's status and header fields whose body is a google.rpc.Status."""
    code = CODES.get(HTTPStatus(problem.status_code), INTERNAL)
    if media_type == PROTOBUF:
        body = _field(1, code) + _field(2, detail.encode())
    else:
        media_type, body = JSON, to_json({"code": code, "message": detail})
    own = (b"content-type", b"content-length")
    fields = [(name, value) for name, value in problem.raw_headers if name not in own]
    return Reply(problem.status_code, body, fields, media_type)


def _message(outcome: Outcome) -> str:
    """Name the first different faults of the refused records."""
    faults = dict.fromkeys(
        f"{excerpt(metric.get('metric_type'))}: {fault.code}: {fault.detail}"
        for _, (metric, faults) in sorted(outcome.refused.items())
        for fault in faults
    )
    shown = " | ".join(list(faults)[:SHOWN_FAULTS])
    more = f" | and {len(faults) - SHOWN_FAULTS} other faults" if len(faults) > SHOWN_FAULTS else ""
    return f"{len(outcome.refused)} of {outcome.received} refused: {shown}{more}"


def _field(number: int, value: int | bytes) -> bytes:
    """Encode a field of a protobuf message. Written here, because google.rpc.Status would be one more dependency."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
