"""OTLP requests for the benchmark: one point, right or wrong."""

import time
import urllib.error
import urllib.request

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

PATH = "/ingest_otlp/v1/metrics"


def request(user_id: str, **changes: object) -> bytes:
    """One point of that user, in protobuf, with the given changes."""
    point = {"name": "talked_time", "value": 1.5, "at": time.time_ns(), "session.id": None} | changes
    message = ExportMetricsServiceRequest()
    metric = message.resource_metrics.add().scope_metrics.add().metrics.add(name=str(point["name"]))
    added = metric.gauge.data_points.add(as_double=point["value"], time_unix_nano=point["at"])
    for key, value in (("user.id", changes.get("user.id", user_id)), ("session.id", point["session.id"])):
        if value is not None:
            pair = added.attributes.add(key=key)
            pair.value.string_value = str(value)
    return message.SerializeToString()


def post(port: int, body: bytes) -> tuple[int, bytes]:
    """The status and the body of the answer; 0 when nobody answers yet."""
    headers = {"Content-Type": "application/x-protobuf"}
    try:
        sent = urllib.request.Request(f"http://127.0.0.1:{port}{PATH}", body, headers)
        with urllib.request.urlopen(sent, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def check_validation(port: int, user_id: str) -> None:
    """Each of these must be refused, by a partial success."""
    now = time.time_ns()
    assert post(port, request(user_id)) == (200, b"")
    wrong: tuple[dict[str, object], ...] = (
        {"user.id": "00000000-0000-4000-8000-000000000001"},
        {"user.id": "not a UUID"},
        {"name": "not_registered"},
        {"name": "Not a name"},
        {"value": float("nan")},
        {"value": -1.0},
        {"at": 0},
        {"at": 946_684_799 * 10**9},
        {"at": now + 2 * 86_400 * 10**9},
        {"session.id": "x"},
    )
    for changes in wrong:
        status, answer = post(port, request(user_id, **changes))
        assert status == 200, changes
        assert answer, f"{changes} was stored"
