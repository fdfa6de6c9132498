"""Decodes OTLP requests in JSON.

OTLP's JSON is that of protobuf with three differences (its specification, "JSON Protobuf Encoding"): trace and span ids
are hexadecimal, enumerations are integers, and unknown fields are ignored. 64-bit integers may be text.
"""

import base64
import binascii
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.otlp.groups import Origin
from metrics_ingest.otlp.records import Group, Records, exact

NO_RECORDED_VALUE = 1  # the bit of a point's flags (DataPointFlags)
SMALL = 65_536  # bytes; the values of a body up to this size are not counted
VALUES_PER_RECORD, NESTED_PER_RECORD = 64, 40  # a point with fifteen attributes; a parsed value takes up to 150 bytes

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)] | None
UInt64 = Annotated[int, Field(ge=0, lt=2**64)] | None
UInt32 = Annotated[int, Field(ge=0, lt=2**32)] | None
Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)] | None
Hexadecimal = Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2})*$")] | None


# The fields of the messages that are read, by the names that they have in JSON.
class AnyValue(TypedDict, total=False):
    stringValue: str | None
    boolValue: bool | None
    intValue: Int64
    doubleValue: float | None
    arrayValue: "ArrayValue | None"
    kvlistValue: "KeyValueList | None"
    bytesValue: str | None


class ArrayValue(TypedDict, total=False):
    values: list[AnyValue] | None


class KeyValue(TypedDict, total=False):
    key: str | None
    value: AnyValue | None


Attributes = list[KeyValue] | None


class KeyValueList(TypedDict, total=False):
    values: Attributes


class Resource(TypedDict, total=False):
    attributes: Attributes


class Scope(TypedDict, total=False):
    name: str | None
    version: str | None
    attributes: Attributes


class Point(TypedDict, total=False):
    attributes: Attributes
    startTimeUnixNano: UInt64
    timeUnixNano: UInt64
    flags: UInt32
    asDouble: float | None
    asInt: Int64
    sum: float | None


class Data(TypedDict, total=False):
    dataPoints: list[Point] | None
    aggregationTemporality: Int32


DATA = {
    "gauge": "gauge",
    "sum": "sum",
    "histogram": "histogram",
    "exponentialHistogram": "exponential_histogram",
    "summary": "summary",
}
Metric = TypedDict("Metric", {"name": str | None, **dict.fromkeys(DATA, Data | None)}, total=False)  # type: ignore[misc]  # of DATA's names


class ScopeMetrics(TypedDict, total=False):
    scope: Scope | None
    metrics: list[Metric] | None


class ResourceMetrics(TypedDict, total=False):
    resource: Resource | None
    scopeMetrics: list[ScopeMetrics] | None


class MetricsRequest(TypedDict, total=False):
    resourceMetrics: list[ResourceMetrics] | None


class LogRecord(TypedDict, total=False):
    timeUnixNano: UInt64
    observedTimeUnixNano: UInt64
    severityNumber: Int32
    severityText: str | None
    body: AnyValue | None
    attributes: Attributes
    flags: UInt32
    traceId: Hexadecimal
    spanId: Hexadecimal
    eventName: str | None


class ScopeLogs(TypedDict, total=False):
    scope: Scope | None
    logRecords: list[LogRecord] | None


class ResourceLogs(TypedDict, total=False):
    resource: Resource | None
    scopeLogs: list[ScopeLogs] | None


class LogsRequest(TypedDict, total=False):
    resourceLogs: list[ResourceLogs] | None


def read_metrics(body: bytes, records: Records) -> None:
    """Add the points of an ExportMetricsServiceRequest. Raise RequestRefused."""
    request = _parse(_metrics_request(), body, records.most)
    for of_resource in request.get("resourceMetrics") or ():
        for of_scope, origin in _scopes(of_resource, "scopeMetrics"):
            for metric in of_scope.get("metrics") or ():
                name = metric.get("name") or ""
                for field, kind in DATA.items():
                    data = metric.get(field)
                    if data is not None:
                        group = origin.of_metric(name, kind, data.get("aggregationTemporality") or 0)
                        _add_points(records, group, name, kind, data.get("dataPoints") or ())
                        break


def read_logs(body: bytes, records: Records) -> None:
    """Add the log records of an ExportLogsServiceRequest. Raise RequestRefused."""
    request = _parse(_logs_request(), body, records.most)
    for of_resource in request.get("resourceLogs") or ():
        for of_scope, origin in _scopes(of_resource, "scopeLogs"):
            group = origin.of_logs()
            for log in of_scope.get("logRecords") or ():
                attributes = _attributes(log.get("attributes"))
                body_value = _value(log.get("body"))
                name = log.get("eventName") or ""
                at, observed = log.get("timeUnixNano") or 0, log.get("observedTimeUnixNano") or 0
                said = (
                    name, at, observed, log.get("severityNumber") or 0, log.get("severityText") or "", body_value,
                    (log.get("traceId") or "").lower(), (log.get("spanId") or "").lower(), log.get("flags") or 0,
                )  # fmt: skip
                value = attributes.get("value")
                records.add(group, name, attributes, at or observed, body_value if value is None else value, said)


def _parse(adapter: TypeAdapter[Any], body: bytes, max_records: int) -> Any:
    if len(body) > SMALL:
        values, nested = body.count(b","), body.count(b"[") + body.count(b"{")
        if values > VALUES_PER_RECORD * max_records + 1_000 or nested > NESTED_PER_RECORD * max_records + 1_000:
            detail = f"the body has far more values than {max_records} records can have"
            raise RequestRefused(Fault("too_many_metrics", detail))
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        detail = f"the body is not an OTLP request in JSON: {where + ': ' if where else ''}{first['msg'][:200]}"
        raise RequestRefused(Fault("malformed_json", detail)) from error


@cache
def _metrics_request() -> TypeAdapter[Any]:
    return TypeAdapter(MetricsRequest)


@cache
def _logs_request() -> TypeAdapter[Any]:
    return TypeAdapter(LogsRequest)


def _scopes(of_resource: Any, field: str) -> Iterable[tuple[Any, Origin]]:
    resource = _attributes((of_resource.get("resource") or {}).get("attributes"))
    for of_scope in of_resource.get(field) or ():
        scope = of_scope.get("scope") or {}
        scope_attributes = _attributes(scope.get("attributes"))
        yield of_scope, Origin(resource, scope.get("name") or "", scope.get("version") or "", scope_attributes)


def _add_points(records: Records, group: Group, name: str, kind: str, points: Iterable[Any]) -> None:
    for point in points:
        if (point.get("flags") or 0) & NO_RECORDED_VALUE:
            continue
        if kind in ("gauge", "sum"):
            value = point.get("asDouble")
            if value is None:
                value = point.get("asInt")
        else:
            value = None if kind == "summary" else point.get("sum")
        if value is not None:
            value = exact(value)
        start, at = point.get("startTimeUnixNano") or 0, point.get("timeUnixNano") or 0
        records.add(group, name, _attributes(point.get("attributes")), at, value, (start, at, value))


def _attributes(pairs: Iterable[Any] | None) -> dict[str, Any]:
    """Return attributes with canonical values; of a key that is repeated, against the specification, the last one."""
    return {pair.get("key") or "": _value(pair.get("value")) for pair in pairs or ()}


def _value(value: Any) -> Any:
    """Return an AnyValue in canonical form, as protobuf._value does."""
    if value:
        for name, content in value.items():
            if content is not None:
                return _content(name, content)
    return None


def _content(name: str, content: Any) -> Any:
    match name:
        case "intValue" | "doubleValue":
            return exact(content)
        case "arrayValue":
            return [_value(item) for item in content.get("values") or ()]
        case "kvlistValue":
            return {"kvlist": sorted(_attributes(content.get("values")).items())}
        case "bytesValue":
            padded = content.replace("-", "+").replace("_", "/") + "=" * (-len(content) % 4)
            try:
                return {"bytes": base64.b64encode(base64.b64decode(padded, validate=True)).decode()}
            except binascii.Error as error:
                raise RequestRefused(Fault("malformed_json", "a bytesValue is not base64")) from error
    return content
