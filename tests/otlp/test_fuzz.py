"""Hostile requests: refused or understood, never a defect, within the limits of memory and time."""

import gzip
import json
import random
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from fuzz.payloads import CHANGES, JSON, PIECES, examples, mutated
from metrics_ingest.errors import CODES, RequestRefused
from metrics_ingest.http.functions import PROTOBUF
from metrics_ingest.otlp.service import inflate
from metrics_ingest.otlp.signals import Signal
from metrics_ingest.otlp.storing import read
from otlp.conftest import Otlp
from support.memory import Peak
from support.otlp import as_json, logs, metrics

LIMIT = 10_485_760
GREW_AT_MOST = 24  # times MAX_BODY_BYTES, as of the other functions: SECURITY.md, Limits
USER = {"user.id": "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d", "n": [1, {"a": b"x", "b": 1.5}], "t": True}
SEEDS: list[Any] = [
    *(
        metrics(kind, "talked_time", {**value, "attributes": USER, "time_unix_nano": 1_723_120_496_000_000_000},
                resource=USER)
        for kind, value in (
            ("gauge", {"as_double": 1.5}), ("sum", {"as_int": 2**62}), ("summary", {"sum": 1.0}),
            ("histogram", {"sum": 1.0, "bucket_counts": [1, 2], "explicit_bounds": [0.5]}),
            ("exponential_histogram", {"sum": 1.0, "zero_count": 2**63}),
        )
    ),
    logs({"event_name": "talked_time", "body": {"a": [1]}, "attributes": USER, "trace_id": b"t" * 16}, resource=USER),
]  # fmt: skip
WIRE = st.sampled_from(
    [b"\x0a\x00", b"\x0a\xff\xff\xff\xff\x0f", b"\x80" * 11, b"\x0b", b"\x0c", b"\xff" * 10, b"\x3a\x02"]
)
PROTOBUFS = st.binary(max_size=100) | st.builds(
    mutated,
    st.sampled_from([seed.SerializeToString() for seed in SEEDS]),
    CHANGES | st.lists(st.tuples(st.integers(0, 1 << 9), PIECES | WIRE, st.integers(0, 12)), min_size=1, max_size=4),
)
WORDS = [
    b"null",
    b"{}",
    b"[]",
    b'"x"',
    b"-1",
    b"1e400",
    b'"NaN"',
    b"18446744073709551616",
    b"true",
    b'"\\ud800"',
    b"1.5",
]
TEXTS = [json.dumps(as_json(seed)).encode() for seed in SEEDS]
VALUES_AT = [(text, at) for text in TEXTS for at in range(len(text)) if text[at : at + 2] == b": "]
JSONS = (
    JSON.map(lambda document: json.dumps(document).encode())
    | st.binary(max_size=50)
    | st.builds(mutated, st.sampled_from(TEXTS), CHANGES)
    | st.builds(
        lambda place, word: _replaced(place[0], place[1], word), st.sampled_from(VALUES_AT), st.sampled_from(WORDS)
    )
)


def _replaced(text: bytes, at: int, word: bytes) -> bytes:
    """The text with another value after the colon."""
    end = at + 2
    depth = 0
    in_string = False
    while end < len(text) and (depth or in_string or text[end : end + 1] not in b",}]"):
        character = text[end : end + 1]
        in_string ^= character == b'"'
        depth += (character in b"{[") - (character in b"}]") if not in_string else 0
        end += 1
    return text[: at + 2] + word + text[end:]


def check(signal: Signal, media_type: bytes, body: bytes) -> None:
    """The body is refused as a whole, or every record of it is accounted for; another error is a 500."""
    status = 200
    try:
        records = read(signal, media_type, body)
    except RequestRefused as refused:
        status = CODES[refused.code]
    if status != 200:
        assert status in (400, 413)
        return
    batch = records.batch({"talked_time": "sum"})
    assert batch.received == len(batch.rows) + len(batch.faults)
    assert len(batch.rows) == len(batch.positions) == len(set(batch.positions))
    for user_id, at, metric_id, session_id, metric_type, value in batch.rows:
        assert (len(user_id), len(metric_id), len(session_id)) == (16, 16, 16)
        assert 0 <= at < 2**63
        assert 0 < len(metric_type) <= 64
        assert abs(value) < float("inf")


SIGNALS = st.sampled_from([Signal.METRICS, Signal.LOGS])


@pytest.mark.slow
@examples(3_000)
@given(signal=SIGNALS, body=PROTOBUFS)
def test_any_protobuf_is_refused_or_accounted_for(library: None, signal: Signal, body: bytes) -> None:
    check(signal, PROTOBUF, body)


@pytest.mark.slow
@examples(3_000)
@given(signal=SIGNALS, body=JSONS)
def test_any_json_is_refused_or_accounted_for(library: None, signal: Signal, body: bytes) -> None:
    check(signal, b"application/json", body)


@examples(300)
@given(body=st.binary(max_size=100), changes=CHANGES)
def test_any_deflate_is_refused_or_inflated(body: bytes, changes: Any) -> None:
    for packed in (body, mutated(zlib.compress(body), changes)):
        code = ""
        try:
            assert len(inflate(packed, 90)) <= 90
        except RequestRefused as refused:
            code = refused.code
        assert code in ("", "malformed_json", "payload_too_large")


@pytest.mark.slow
@examples(100)
@given(path=st.sampled_from(["metrics", "logs"]), as_protobuf=st.booleans(), data=st.data())
def test_function_answers_any_body(otlp: Otlp, path: str, as_protobuf: bool, data: st.DataObject) -> None:
    body = data.draw(PROTOBUFS if as_protobuf else JSONS)
    headers = {"Content-Type": "application/x-protobuf" if as_protobuf else "application/json"}
    answer = requests.post(f"{otlp.url}/v1/{path}", data=body, headers=headers, timeout=10)
    assert answer.status_code in (200, 400), answer.content


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message with this content."""
    size, length = len(content), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes([*length, size]) + content


def within(*numbers: int, content: bytes) -> bytes:
    """A message in messages: resource_metrics 1, scope_metrics 2, metrics 2, gauge 5 or histogram 9, data_points 1."""
    for number in reversed(numbers):
        content = field(number, content)
    return content


def filled(*numbers: int, unit: bytes) -> bytes:
    """A message of the size limit that repeats the unit, in messages."""
    return within(*numbers, content=unit * ((LIMIT - 64) // len(unit)))


def nested(depth: int) -> bytes:
    value = b"\x0a\x01x"
    for _ in range(depth):
        value = field(5, field(1, value))
    return within(1, 2, 2, 5, 1, content=field(7, b"\x0a\x01k" + field(2, value)))


def many(text: str, *, repeat: str, rest: str) -> bytes:
    """JSON of the size limit that repeats a part."""
    times = (LIMIT - len(text) - len(rest)) // (len(repeat) + 1)
    return f"{text}{','.join([repeat] * times)}{rest}".encode()


POINTS = '{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"x","gauge":{"dataPoints":['
NUMBER = b"\x19" + (1_723_120_496_000_000_000).to_bytes(8, "little") + b"\x21" + bytes(8)
# Each with its status.
HEAVY: dict[str, tuple[Callable[[], bytes], int]] = {
    "resources": (lambda: filled(unit=b"\x0a\x00"), 413),
    "scopes": (lambda: filled(1, unit=b"\x12\x00"), 413),
    "metrics": (lambda: filled(1, 2, unit=b"\x12\x00"), 413),
    "points": (lambda: filled(1, 2, 2, 5, unit=b"\x0a\x00"), 413),
    "histograms": (lambda: filled(1, 2, 2, 9, unit=b"\x0a\x00"), 413),
    "attributes": (lambda: filled(1, 2, 2, 5, 1, unit=b"\x3a\x00"), 413),
    "attributes of a resource": (lambda: filled(1, 1, unit=b"\x0a\x00"), 413),
    "values of an array": (lambda: filled(1, 1, 1, 2, 5, unit=b"\x0a\x00"), 413),
    "exemplars": (lambda: filled(1, 2, 2, 5, 1, unit=b"\x2a\x00"), 413),
    "unknown fields": (lambda: filled(unit=b"\x78\x01"), 413),
    "packed counts": (lambda: within(1, 2, 2, 9, 1, content=field(6, bytes(LIMIT - 64))), 200),
    "a long name": (lambda: within(1, 2, 2, content=field(1, b"a" * (LIMIT - 64)) + b"\x2a\x02\x0a\x00"), 200),
    "a long user": (
        lambda: within(1, content=within(1, 1, content=b"\x0a\x07user.id" + within(2, 1, content=b"a" * (LIMIT - 64)))
                       + within(2, 2, 5, content=b"\x0a\x00")), 200),
    "half a limit of attributes": (lambda: within(1, 2, 2, 5, 1, content=b"\x3a\x00" * 250_000), 200),
    "deep nests": (lambda: nested(5_000), 400),
    "as deep as it goes": (lambda: nested(40), 200),
    "a length beyond the end": (lambda: b"\x0a\xff\xff\xff\xff\x0f" + bytes(LIMIT - 6), 413),
    "JSON points": (lambda: many(POINTS, repeat="{}", rest="]}}]}]}]}"), 413),
    "JSON attributes": (lambda: many(POINTS + '{"attributes":[', repeat="{}", rest="]}]}}]}]}]}"), 413),
    "JSON unknown fields": (lambda: many("{", repeat='"x":1', rest="}"), 413),
    "JSON nests": (lambda: b'{"x":' + b"[" * (LIMIT // 2 - 10) + b"]" * (LIMIT // 2 - 10) + b"}", 413),
    "JSON deep nests": (lambda: b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400),
    "a JSON text of escapes": (lambda: b'{"x":"' + b"\\u0041" * (LIMIT // 6 - 2) + b'"}', 200),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_memory_grows_by_a_known_multiple_of_the_limit(otlp: Otlp, name: str, packed: bool) -> None:
    make, status = HEAVY[name]
    body = make()
    assert len(body) <= LIMIT
    headers = {"Content-Type": "application/json" if "JSON" in name else "application/x-protobuf"}
    if packed:
        body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
    peak, started = Peak(otlp.server), time.monotonic()
    answer = requests.post(f"{otlp.url}/v1/metrics", data=body, headers=headers, timeout=60)
    assert answer.status_code == status, answer.content[:300]
    assert peak.growth < GREW_AT_MOST * LIMIT, f"{peak.growth / 2**20:.0f} MiB"
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_as_many_points_as_allowed_with_fifteen_attributes_each_are_taken(otlp: Otlp) -> None:
    user = otlp.user()
    now = time.time_ns()
    attributes = {"user.id": user, **{f"k{number}": random.random() for number in range(14)}}
    points = [{"as_int": 1, "time_unix_nano": now + number, "attributes": attributes} for number in range(10_000)]
    request = metrics("gauge", "talked_time", *points)
    assert 2**20 < request.ByteSize() < LIMIT
    peak = Peak(otlp.server)
    headers = {"Content-Type": "application/x-protobuf"}
    answer = requests.post(f"{otlp.url}/v1/metrics", data=request.SerializeToString(), headers=headers, timeout=60)
    assert (answer.status_code, answer.content) == (200, b"")
    assert len(otlp.rows(user)) == 10_000
    assert peak.growth < GREW_AT_MOST * LIMIT, f"{peak.growth / 2**20:.0f} MiB"
