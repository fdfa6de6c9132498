"""OTLP requests for tests: built as protobuf, and written as the JSON that OTLP has for it."""

import base64
import time
from typing import Any

import requests
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

PROTOBUF = "application/x-protobuf"
DELTA, CUMULATIVE = 1, 2


def set_value(target: Any, value: Any) -> None:
    """Set an AnyValue from Python: a dict is a list of pairs, None stays unset."""
    match value:
        case bool():
            target.bool_value = value
        case str():
            target.string_value = value
        case int():
            target.int_value = value
        case float():
            target.double_value = value
        case bytes():
            target.bytes_value = value
        case list():
            target.array_value.SetInParent()
            for item in value:
                set_value(target.array_value.values.add(), item)
        case dict():
            target.kvlist_value.SetInParent()
            set_attributes(target.kvlist_value.values, value)


def set_attributes(target: Any, attributes: dict[str, Any]) -> None:
    """Add attributes, in their order."""
    for key, value in attributes.items():
        pair = target.add()
        pair.key = key
        set_value(pair.value, value)


def metrics(
    kind: str,
    name: str,
    *points: dict[str, Any],
    temporality: int = DELTA,
    resource: dict[str, Any] | None = None,
    scope: str = "tests",
) -> ExportMetricsServiceRequest:
    """A request with one metric. Points have their message's fields, `attributes` as a dict, and by default now."""
    request = ExportMetricsServiceRequest()
    of_resource = request.resource_metrics.add()
    set_attributes(of_resource.resource.attributes, resource or {})
    of_scope = of_resource.scope_metrics.add()
    of_scope.scope.name = scope
    metric = of_scope.metrics.add(name=name)
    data = getattr(metric, kind)
    data.SetInParent()
    if kind not in ("gauge", "summary"):
        data.aggregation_temporality = temporality
    for fields in points:
        attributes = fields.get("attributes", {})
        rest = {key: value for key, value in fields.items() if key != "attributes"}
        set_attributes(data.data_points.add(**{"time_unix_nano": time.time_ns(), **rest}).attributes, attributes)
    return request


def logs(*records: dict[str, Any], resource: dict[str, Any] | None = None) -> ExportLogsServiceRequest:
    """A request with log records: their message's fields; `attributes` is a dict, `body` a value; now by default."""
    request = ExportLogsServiceRequest()
    of_resource = request.resource_logs.add()
    set_attributes(of_resource.resource.attributes, resource or {})
    of_scope = of_resource.scope_logs.add()
    of_scope.scope.name = "tests"
    for fields in records:
        rest = {key: value for key, value in fields.items() if key not in ("attributes", "body")}
        record = of_scope.log_records.add(**{"time_unix_nano": time.time_ns(), **rest})
        set_attributes(record.attributes, fields.get("attributes", {}))
        if "body" in fields:
            set_value(record.body, fields["body"])
    return request


def as_json(request: Any) -> Any:
    """The request as OTLP's JSON: ids in hexadecimal, enumerations as integers, 64-bit integers as text."""
    return _with_hexadecimal_ids(json_format.MessageToDict(request, use_integers_for_enums=True))


def _with_hexadecimal_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_hexadecimal_ids(item) for item in value]
    if isinstance(value, dict):
        return {
            name: base64.b64decode(item).hex() if name in ("traceId", "spanId") else _with_hexadecimal_ids(item)
            for name, item in value.items()
        }
    return value


def post(url: str, request: Any, *, as_: str = "protobuf", **headers: str) -> requests.Response:
    """Send a request to a running ingest_otlp, to the path of its signal."""
    signal = "logs" if isinstance(request, ExportLogsServiceRequest) else "metrics"
    to = f"{url}/ingest_otlp/v1/{signal}"
    if as_ == "json":
        return requests.post(to, json=as_json(request), headers=headers, timeout=30)
    headers = {"Content-Type": PROTOBUF, **headers}
    return requests.post(to, data=request.SerializeToString(), headers=headers, timeout=30)


def refused(answer: requests.Response) -> tuple[int, str]:
    """How many records a 200 refuses, and its message; (0, "") if all are stored."""
    assert answer.status_code == 200, answer.content
    if answer.headers["Content-Type"] == "application/json":
        partial = answer.json().get("partialSuccess", {})
        count = partial.get("rejectedDataPoints", partial.get("rejectedLogRecords", 0))
        return int(count), partial.get("errorMessage", "")
    signal = ExportMetricsServiceResponse if "/metrics" in str(answer.url) else ExportLogsServiceResponse
    success = signal.FromString(answer.content).partial_success
    fields = {field.name: value for field, value in success.ListFields()}
    message = fields.pop("error_message", "")
    return next(iter(fields.values()), 0), message
