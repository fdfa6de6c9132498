"""What OTLP/HTTP asks of a server: paths, types, encodings, statuses, and the bodies of replies."""

import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from otlp.conftest import Otlp
from support.metrics import register
from support.mortal import Mortal
from support.otlp import PROTOBUF, as_json, logs, metrics, post, refused
from support.processes import Server, eventually, function
from support.proxy import Proxy

JSON = "application/json"


def rpc_status(answer: requests.Response, media_type: str = PROTOBUF) -> Status:
    """The reply's google.rpc.Status, which has the request's type."""
    assert answer.headers["Content-Type"] == media_type
    if media_type == JSON:
        return json_format.Parse(answer.content, Status())
    return Status.FromString(answer.content)


def point(user: str, value: float = 1.5, **attributes: Any) -> dict[str, Any]:
    return {"as_double": value, "attributes": {"user.id": user, **attributes}}


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/metrics/", "/ingest_otlp/v1/metrics", "/any/prefix/v1/metrics"])
def test_path_may_have_any_prefix(otlp: Otlp, path: str) -> None:
    user = otlp.user()
    body = metrics("gauge", "talked_time", point(user)).SerializeToString()
    answer = requests.post(otlp.url + path, data=body, headers={"Content-Type": PROTOBUF}, timeout=10)
    assert (answer.status_code, answer.content, answer.headers["Content-Type"]) == (200, b"", PROTOBUF)
    assert otlp.values(user) == [("talked_time", 1.5)]


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/traces", "/v1/metrics/x", "/metrics", "/ingest_otlp/", "/v2/logs"])
def test_any_other_path_is_404(otlp: Otlp, path: str) -> None:
    answer = requests.post(otlp.url + path, data=b"", headers={"Content-Type": PROTOBUF}, timeout=10)
    assert answer.status_code == 404
    assert rpc_status(answer).code == 5
    assert "v1/metrics" in rpc_status(answer).message
    assert requests.get(otlp.url + path, timeout=10).json()["function"] == "ingest_otlp"


def test_success_has_no_partial_success(otlp: Otlp) -> None:
    """Also for duplicates, and for a request without records."""
    request = metrics("gauge", "talked_time", point(otlp.user()))
    for _ in range(2):
        assert post(otlp.url, request).content == b""
        assert post(otlp.url, request, as_="json").content == b"{}"
    for empty in (metrics("gauge", "talked_time"), logs()):
        assert post(otlp.url, empty).content == b""
        assert post(otlp.url, empty, as_="json").content == b"{}"


def test_partial_success_counts_the_refused_and_names_the_first_faults(otlp: Otlp) -> None:
    user = otlp.user()
    request = metrics("gauge", "talked_time", point(user), *(point(user, -number) for number in range(1, 7)))
    answer = post(otlp.url, request)
    partial = ExportMetricsServiceResponse.FromString(answer.content).partial_success
    assert partial.rejected_data_points == 6
    assert partial.error_message.startswith('6 of 7 refused: "talked_time": value_out_of_range: talked_time must be')
    assert partial.error_message.endswith("| and 3 other faults")
    assert otlp.values(user) == [("talked_time", 1.5)]
    as_json_ = post(otlp.url, request, as_="json").json()
    assert as_json_ == {"partialSuccess": {"rejectedDataPoints": "6", "errorMessage": partial.error_message}}
    parsed = json_format.ParseDict(as_json_, ExportMetricsServiceResponse())
    assert parsed.partial_success.rejected_data_points == 6


def test_all_refused_is_a_partial_success_too(otlp: Otlp) -> None:
    answer = post(otlp.url, logs({"event_name": "talked_time"}), as_="json")
    assert answer.status_code == 200
    assert answer.json()["partialSuccess"]["rejectedLogRecords"] == "1"


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "GZIP": gzip.compress,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("media_type", [PROTOBUF, JSON])
def test_body_may_be_compressed(otlp: Otlp, encoding: str, media_type: str) -> None:
    user = otlp.user()
    request = metrics("gauge", "talked_time", point(user))
    body = request.SerializeToString() if media_type == PROTOBUF else json.dumps(as_json(request)).encode()
    headers = {"Content-Type": media_type, "Content-Encoding": encoding}
    answer = requests.post(f"{otlp.url}/v1/metrics", data=ENCODINGS[encoding](body), headers=headers, timeout=10)
    assert refused(answer) == (0, "")
    assert otlp.values(user) == [("talked_time", 1.5)]


BAD: dict[str, tuple[bytes, dict[str, str], int, int]] = {
    "not protobuf": (b"\xff\xff", {}, 400, 3),
    "cut short": (metrics("gauge", "x", point("u")).SerializeToString()[:-1], {}, 400, 3),
    "invalid UTF-8": (metrics("gauge", "talked_time").SerializeToString().replace(b"talked", b"\xff" * 6), {}, 400, 3),
    "not gzip": (b"x", {"Content-Encoding": "gzip"}, 400, 3),
    "cut gzip": (gzip.compress(b"x")[:-1], {"Content-Encoding": "gzip"}, 400, 3),
    "not deflate": (b"x", {"Content-Encoding": "deflate"}, 400, 3),
    "cut deflate": (zlib.compress(b"x")[:-1], {"Content-Encoding": "deflate"}, 400, 3),
    "deflate and more": (zlib.compress(b"") + b"x", {"Content-Encoding": "deflate"}, 400, 3),
    "deflated bomb": (zlib.compress(b"\0" * 11_000_000), {"Content-Encoding": "deflate"}, 413, 8),
    "gzip bomb": (gzip.compress(b"\0" * 11_000_000), {"Content-Encoding": "gzip"}, 413, 8),
    "too large": (b"\0" * 10_485_761, {}, 413, 8),
    "unknown encoding": (b"", {"Content-Encoding": "br"}, 415, 3),
    "two encodings": (b"", {"Content-Encoding": "gzip, deflate"}, 415, 3),
    "too many points": (metrics("gauge", "x", *[{"time_unix_nano": 1}] * 10_001).SerializeToString(), {}, 413, 8),
    "not JSON": (b"{", {"Content-Type": JSON}, 400, 3),
    "an array": (b"[]", {"Content-Type": JSON}, 400, 3),
    "a wrong type": (b'{"resourceMetrics":[{"scopeMetrics":{}}]}', {"Content-Type": JSON}, 400, 3),
    "a name of an enumeration": (
        b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"x","sum":'
        b'{"aggregationTemporality":"AGGREGATION_TEMPORALITY_DELTA"}}]}]}]}',
        {"Content-Type": JSON},
        400,
        3,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_final_errors_are_a_status_in_the_type_of_the_request(otlp: Otlp, name: str) -> None:
    body, headers, status, code = BAD[name]
    headers = {"Content-Type": PROTOBUF, **headers}
    answer = requests.post(f"{otlp.url}/v1/metrics", data=body, headers=headers, timeout=30)
    assert answer.status_code == status, answer.content
    error = rpc_status(answer, headers["Content-Type"])
    assert error.code == code
    assert error.message
    if status == 415:
        assert answer.headers["Accept-Encoding"] == "gzip, deflate, identity"


def test_other_type_is_415_in_json(otlp: Otlp) -> None:
    answer = requests.post(f"{otlp.url}/v1/logs", data=b"", headers={"Content-Type": "text/plain"}, timeout=10)
    assert answer.status_code == 415
    assert "application/x-protobuf" in rpc_status(answer, JSON).message


def test_key_is_needed_where_keys_are_set(database_url: str, serve: Callable[..., Server]) -> None:
    entry = f"app:{hashlib.sha256(b'secret').hexdigest()}"
    server = serve("ingest_otlp", database_url, API_KEYS=entry, ALLOW_ANONYMOUS="false")
    request = metrics("gauge", "talked_time", point(register(database_url)))
    answer = post(server.url, request)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert rpc_status(answer).code == 16
    for headers in ({"x-api-key": "secret"}, {"Authorization": "Bearer secret"}):
        assert refused(post(server.url, request, **headers)) == (0, "")


def test_page_of_a_listed_origin_may_post(database_url: str, serve: Callable[..., Server]) -> None:
    server = serve("ingest_otlp", database_url, CORS_ORIGINS="https://app.example.com")
    origin = {"Origin": "https://app.example.com"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-api-key"}
    preflight = requests.options(f"{server.url}/v1/logs", headers={**origin, **asked}, timeout=10)
    assert preflight.status_code == 204
    assert "content-type" in preflight.headers["Access-Control-Allow-Headers"]
    answers = [
        post(server.url, logs(), **origin),
        requests.post(f"{server.url}/v1/logs", data=b"x", headers={**origin, "Content-Type": PROTOBUF}, timeout=10),
        requests.post(f"{server.url}/v1/traces", headers=origin, timeout=10),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 404]
    for answer in (preflight, *answers):
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example.com"


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gauge", "histogram"])
def test_without_the_database_the_reply_is_503_after_four_seconds(mortal: Mortal, kind: str) -> None:
    """A histogram needs two questions to the database, in the same time."""
    url = mortal.clone()
    user = register(url)
    with Proxy(url) as proxy, function("ingest_otlp", proxy.url) as server:
        value = {"as_double": 1.0} if kind == "gauge" else {"sum": 1.0}
        request = metrics(kind, "talked_time", {**value, "attributes": {"user.id": user}})
        proxy.hold()
        started = time.monotonic()
        answer = post(server.url, request)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) <= 2
        assert rpc_status(answer).code == 14
        assert 3.5 < time.monotonic() - started < 5
        proxy.release(cut=True)
        assert refused(post(server.url, request)) == (0, "")


@pytest.mark.slow
def test_overload_is_503(database_url: str) -> None:
    """Beyond WRITE_QUEUE."""
    user = register(database_url)
    settings = {"WRITE_QUEUE": "1", "WRITE_LANES": "1", "WRITE_TIMEOUT_S": "1"}
    with Proxy(database_url) as proxy, function("ingest_otlp", proxy.url, **settings) as server:
        request = metrics("gauge", "talked_time", point(user), point(user))
        proxy.hold()

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: post(server.url, request), range(4)))
        assert {answer.status_code for answer in answers} == {503}
        assert any("overloaded" in rpc_status(answer).message for answer in answers)
        assert all(answer.headers["Retry-After"] for answer in answers)
        proxy.release(cut=True)
        eventually(lambda: post(server.url, request).status_code == 200)
