"""Every way to be refused by /ingest/ and /users/: code, status, field and body, from a running process."""

import gzip
import json
from typing import Any
from uuid import uuid4

import pytest
import requests

from support.problems import check_problem
from support.processes import Server, Stack

GOOD = {"user_id": "…", "metric_type": "talked_time", "value": 12.34, "timestamp": "2024-08-08T12:34:56Z"}
NIL = "00000000-0000-0000-0000-000000000000"
NOT_A_NUMBER: list[object] = ["1", None, [1], {}, "NaN", 10**400]
NOT_A_UUID: list[object] = ["", "x", 7, [], NIL, "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23", "\x00"]

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    *(({name: value}, "invalid_uuid", name) for name in ("user_id", "session_id", "metric_id") for value in NOT_A_UUID),
    ({"user_id": None}, "invalid_uuid", "user_id"),
    ({"user_id": NIL.replace("-", "")}, "invalid_uuid", "user_id"),
    ({"user_id": "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"}, "unknown_user", "user_id"),
    *(({"metric_type": odd}, "invalid_metric_type", "metric_type") for odd in ("", "T", "1st", "a" * 65, 7, None, "é")),
    ({"metric_type": "steps_taken"}, "unknown_metric_type", "metric_type"),
    *(({"value": odd}, "invalid_value", "value") for odd in NOT_A_NUMBER),
    ({"value": -0.001}, "value_out_of_range", "value"),
    ({"value": 86400.5}, "value_out_of_range", "value"),
    ({"metric_type": "voice_sentiment", "value": 1.01}, "value_out_of_range", "value"),
    ({"metric_type": "microphone_used", "value": 0.5}, "value_out_of_range", "value"),
    *(
        ({"timestamp": text}, "invalid_timestamp", "timestamp")
        for text in (
            *("", "now", "2024-08-08", "2024-08-08T12:34:56", "1723120496", 1723120496, None, "2024-02-30T00:00:00Z"),
            *("2024-08-08T24:00:00Z", "2024-08-08T12:34:60Z", "2024-08-08T12:34Z", "2024-08-08T12:34:56+24:00"),
            *("2024-08-08T12:34:56+2", "2024-08-08T12:34:56+02:0", "2024-08-08T12:34:56+24", "2024-08-08T12:34:56+02:"),
            *("2024-08-08T12:34:56+020", "20240808T123456Z", "٢٠٢٤-08-08T12:34:56Z", "2024-08-08T12:34:56Z "),
        )
    ),
    *(
        ({"timestamp": text}, "timestamp_out_of_range", "timestamp")
        for text in (
            *("1999-12-31T23:59:59Z", "2000-01-01T00:00:00+00:01", "2000-01-01T00:00:00+0001"),
            *("2000-01-01T00:00:00+01", "2099-01-01T00:00:00+01"),
            *("9999-12-31T23:59:59-23:59", "2099-01-01T00:00:00Z"),
        )
    ),
    ({"mood": "good"}, "unknown_field", "mood"),
]  # fmt: skip
MISSING: list[tuple[dict[str, Any], str, str]] = [({name: ...}, "missing_field", name) for name in GOOD]


@pytest.mark.parametrize(("change", "code", "field"), REFUSED + MISSING, ids=repr)
def test_metric_that_breaks_a_rule(
    stack: Stack, metric: dict[str, Any], change: dict[str, Any], code: str, field: str
) -> None:
    del metric["metric_id"]
    answer = stack.send({name: value for name, value in (metric | change).items() if value is not ...})
    problem = check_problem(answer, code, field)
    assert len(problem["errors"]) == 1
    assert stack.stored(metric["user_id"]) == []


def test_every_fault_is_told_at_once(stack: Stack) -> None:
    answer = stack.send({"user_id": "x", "metric_type": "T", "value": "1", "timestamp": "t", "mood": 1})
    assert {
        (error["code"], error["field"]) for error in check_problem(answer, "invalid_uuid", "user_id")["errors"]
    } == {
        ("invalid_uuid", "user_id"),
        ("invalid_metric_type", "metric_type"),
        ("invalid_value", "value"),
        ("invalid_timestamp", "timestamp"),
        ("unknown_field", "mood"),
    }


def test_unknown_user_and_type_are_both_told(stack: Stack, metric: dict[str, Any]) -> None:
    answer = stack.send({**metric, "user_id": str(uuid4()), "metric_type": "nothing"})
    codes = [error["code"] for error in check_problem(answer, "unknown_user", "user_id")["errors"]]
    assert codes == ["unknown_user", "unknown_metric_type"]
    assert {error["metric_id"] for error in answer.json()["errors"]} == {metric["metric_id"]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"value":"\xff"}',
        b'{"metric_type":"\\ud800"}',
        b"[" * 100_000,
        b" \xef\xbb\xbf{}",
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["ingest", "users"])
def test_body_that_is_no_json(stack: Stack, name: str, body: bytes) -> None:
    check_problem(requests.post(getattr(stack, name).url, data=body, timeout=10), "malformed_json")


NO_OBJECTS = (b"null", b"3", b'"text"', b"true")


@pytest.mark.parametrize(
    ("name", "body"), [("ingest", b"[]"), *((name, body) for name in ("ingest", "users") for body in NO_OBJECTS)]
)
def test_body_that_is_no_object(stack: Stack, name: str, body: bytes) -> None:
    check_problem(requests.post(getattr(stack, name).url, data=body, timeout=10), "invalid_field")


def test_leap_second_is_refused_by_that_name(stack: Stack, metric: dict[str, Any]) -> None:
    for text in ("2016-12-31T23:59:60Z", "2016-12-31t23:59:60.5+01:00", "2017-01-01 00:59:60+01"):
        problem = check_problem(stack.send(metric | {"timestamp": text}), "invalid_timestamp", "timestamp")
        assert "leap second" in problem["detail"]


@pytest.mark.parametrize("again", ['"value":99', '"v\\u0061lue" : 99', '"value":"x"', '"value":null'])
def test_field_sent_twice_is_refused(stack: Stack, metric: dict[str, Any], again: str) -> None:
    text = json.dumps(metric)
    for body in (text.replace("{", "{" + again + ",", 1), text.replace("}", "," + again + "}", 1)):
        problem = check_problem(requests.post(stack.ingest.url, data=body, timeout=10), "invalid_field", "value")
        assert [error["metric_id"] for error in problem["errors"]] == [metric["metric_id"]]
    assert stack.stored(metric["user_id"]) == []


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_number_that_is_not_finite(stack: Stack, metric: dict[str, Any], constant: str) -> None:
    body = json.dumps(metric).replace("12.34", constant)
    check_problem(requests.post(stack.ingest.url, data=body, timeout=10), "invalid_value", "value")


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/x-ndjson", "application/jsonl", "json"],
)
def test_media_type_that_is_not_read(stack: Stack, metric: dict[str, Any], media_type: str) -> None:
    answer = stack.send(metric, **{"Content-Type": media_type})
    assert "application/json" in check_problem(answer, "unsupported_media_type")["detail"]


@pytest.mark.parametrize(
    "media_type",
    ["", ";a=b", "application/json; charset=utf-8", "APPLICATION/JSON", "application/json ;x=y"],
)
def test_media_type_with_parameters_is_read(stack: Stack, metric: dict[str, Any], media_type: str) -> None:
    assert stack.send(metric, **{"Content-Type": media_type}).status_code == 200


def test_absent_media_type_is_read_as_json(stack: Stack, metric: dict[str, Any]) -> None:
    assert requests.post(stack.ingest.url, data=json.dumps(metric).encode(), timeout=10).status_code == 200


def test_gzip_is_read_and_other_encodings_are_not(stack: Stack, metric: dict[str, Any]) -> None:
    packed = gzip.compress(json.dumps(metric).encode())
    accepted = requests.post(stack.ingest.url, data=packed, headers={"Content-Encoding": "gzip"}, timeout=10)
    assert accepted.status_code == 200
    check_problem(stack.send(metric, **{"Content-Encoding": "br"}), "unsupported_encoding")


@pytest.mark.parametrize(
    "spoil", [lambda packed: packed[:-9], lambda packed: packed + b"x", lambda packed: b"x" + packed]
)
def test_broken_gzip(stack: Stack, metric: dict[str, Any], spoil: Any) -> None:
    packed = spoil(gzip.compress(json.dumps(metric).encode()))
    answer = requests.post(stack.ingest.url, data=packed, headers={"Content-Encoding": "gzip"}, timeout=10)
    check_problem(answer, "malformed_json")


def test_body_over_the_limit_sent_or_unpacked(serve: Any, stack: Stack, metric: dict[str, Any]) -> None:
    small: Server = serve("ingest", stack.database_url, MAX_BODY_BYTES="1000")
    padded = json.dumps(metric).encode() + b" " * 1000
    for data, headers in (
        (padded, {}),
        (iter([padded[:600], padded[600:]]), {}),  # chunked: its length is not known before
        (gzip.compress(padded), {"Content-Encoding": "gzip"}),
    ):
        check_problem(requests.post(small.url, data=data, headers=headers, timeout=10), "payload_too_large")
    fits = json.dumps(metric).encode().ljust(1000)
    assert requests.post(small.url, data=fits, timeout=10).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods(stack: Stack, method: str) -> None:
    answer = requests.request(method, f"{stack.ingest.url}/ingest/", timeout=10)
    check_problem(answer, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é".encode()])
def test_idempotency_key_that_cannot_be_one(stack: Stack, metric: dict[str, Any], key: str) -> None:
    check_problem(stack.send(metric, **{"Idempotency-Key": key}), "invalid_field", "Idempotency-Key")


def test_missing_or_unknown_api_key(serve: Any, stack: Stack, metric: dict[str, Any]) -> None:
    digest = "d5b1bb1b2ef4a7e0dd46d8ffd3f3e8e8cc22d5ee9d3bdf7e5dcc3a6b7a4a8d3c"
    locked: Server = serve("ingest", stack.database_url, API_KEYS=f"mobile:{digest}")
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic d3Jvbmc="}):
        answer = requests.post(locked.url, json=metric, headers=headers, timeout=10)
        check_problem(answer, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_database_that_is_away(serve: Any, metric: dict[str, Any]) -> None:
    orphan: Server = serve("ingest", "postgresql://nobody@127.0.0.1:1/none", WRITE_TIMEOUT_S="0.5")
    answer = requests.post(orphan.url, json=metric, timeout=10)
    check_problem(answer, "store_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert requests.get(orphan.url, timeout=10).status_code == 200
    check_problem(requests.get(f"{orphan.url}/ingest/health", timeout=10), "store_unavailable")
