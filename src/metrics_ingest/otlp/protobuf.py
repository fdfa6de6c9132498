"""Decodes OTLP requests in protobuf."""

import base64
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from metrics_ingest.errors import Fault, RequestRefused
from metrics_ingest.otlp.groups import Origin
from metrics_ingest.otlp.records import Group, Records, exact
from metrics_ingest.otlp.wire import check_fields

NO_RECORDED_VALUE = 1  # the bit of a point's flags (DataPointFlags)


def read_metrics(body: bytes, records: Records) -> None:
    """Add the points of an ExportMetricsServiceRequest. Raise RequestRefused."""
    request = _parse(ExportMetricsServiceRequest, body, records.most)
    for of_resource in request.resource_metrics:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_metrics:
            scope = of_scope.scope
            origin = Origin(resource, scope.name, scope.version, _attributes(scope.attributes))
            for metric in of_scope.metrics:
                kind = metric.WhichOneof("data")
                if kind:
                    data = getattr(metric, kind)
                    temporality = getattr(data, "aggregation_temporality", None)
                    group = origin.of_metric(metric.name, kind, temporality)
                    add = _add_numbers if kind in ("gauge", "sum") else _add_sums
                    add(records, group, metric.name, data.data_points)


def read_logs(body: bytes, records: Records) -> None:
    """Add the log records of an ExportLogsServiceRequest. Raise RequestRefused."""
    request = _parse(ExportLogsServiceRequest, body, records.most)
    for of_resource in request.resource_logs:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_logs:
            scope = of_scope.scope
            group = Origin(resource, scope.name, scope.version, _attributes(scope.attributes)).of_logs()
            for log in of_scope.log_records:
                attributes = _attributes(log.attributes)
                body_value = _value(log.body)
                name, at, observed = log.event_name, log.time_unix_nano, log.observed_time_unix_nano
                said = (
                    name, at, observed, log.severity_number, log.severity_text, body_value,
                    log.trace_id.hex(), log.span_id.hex(), log.flags,
                )  # fmt: skip
                value = attributes.get("value")
                records.add(group, name, attributes, at or observed, body_value if value is None else value, said)


def _parse(message: Any, body: bytes, max_records: int) -> Any:
    check_fields(body, message.DESCRIPTOR, max_records)
    try:
        return message.FromString(body)
    except DecodeError as error:
        raise RequestRefused(
            Fault("malformed_json", f"the body is not a protobuf {message.DESCRIPTOR.name}")
        ) from error


def _add_numbers(records: Records, group: Group, name: str, points: Iterable[Any]) -> None:
    for point in points:
        if point.flags & NO_RECORDED_VALUE:
            continue
        value: float | None = point.as_double
        if not value:  # zero, or none, or an integer
            which = point.WhichOneof("value")
            value = None if which is None else exact(getattr(point, which))
        at = point.time_unix_nano
        records.add(group, name, _attributes(point.attributes), at, value, (point.start_time_unix_nano, at, value))


def _add_sums(records: Records, group: Group, name: str, points: Iterable[Any]) -> None:
    """Add the sums of histograms; a summary is added without its sum, because it has no temporality."""
    for point in points:
        if point.flags & NO_RECORDED_VALUE:
            continue
        has_sum = group.condition is not None and point.HasField("sum")
        value = exact(point.sum) if has_sum else None
        at = point.time_unix_nano
        records.add(group, name, _attributes(point.attributes), at, value, (point.start_time_unix_nano, at, value))


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    """Return attributes with canonical values; of a key that is repeated, against the specification, the last one."""
    return {pair.key: pair.value.string_value or _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    """Return an AnyValue in canonical form: as JSON, what JSON does not have as an object, numbers as of `exact`."""
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return exact(value.int_value)
        case "double_value":
            return exact(value.double_value)
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return {"kvlist": sorted(_attributes(value.kvlist_value.values).items())}
        case "bytes_value":
            return {"bytes": base64.b64encode(value.bytes_value).decode()}
    return None
