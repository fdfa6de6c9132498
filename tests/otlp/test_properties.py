"""Random requests: protobuf and JSON are the same, all is accounted for, and sending again changes nothing."""

import json
import random
import time
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from metrics_ingest.otlp import json_text, protobuf
from metrics_ingest.otlp.records import Records
from otlp.conftest import Otlp
from support.otlp import as_json, logs, metrics, post, refused
from support.processes import query

NOW = time.time_ns()
USERS = [str(UUID(int=number + (5 << 76) + (9 << 62))) for number in range(1, 4)]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | TEXT | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
IDS = st.sampled_from([*USERS, "not a UUID"]) | st.uuids().map(str) | VALUES
OWN = {"user.id": st.sampled_from(USERS) | IDS, "session.id": IDS, "metric.id": st.uuids().map(str) | VALUES}
ATTRIBUTES = st.builds(
    lambda other, own: {**other, **own},
    st.dictionaries(TEXT | st.sampled_from(["value", "log.record.uid"]), VALUES, max_size=3),
    st.fixed_dictionaries({}, optional=OWN),
)
NAMES = st.sampled_from(["talked_time", "talked.time", "Voice-Sentiment", "microphone_used", "unknown", ""]) | TEXT
TIMES = st.integers(NOW - 10**15, NOW) | st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, NOW, 2**63])
NUMBERS = st.fixed_dictionaries({}, optional={"as_double": st.floats()}) | st.fixed_dictionaries(
    {"as_int": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5)}
)
COMMON = {"attributes": ATTRIBUTES, "time_unix_nano": TIMES, "start_time_unix_nano": TIMES}
FLAGS = {"flags": st.integers(0, 2**32 - 1) | st.sampled_from([0, 1])}
POINTS = st.builds(
    lambda common, number: common | number, st.fixed_dictionaries(COMMON, optional=FLAGS), NUMBERS
)  # fmt: skip
SUMS = st.fixed_dictionaries(COMMON, optional={"sum": st.floats() | st.floats(0, 10), **FLAGS})


@st.composite
def metrics_requests(draw: st.DrawFn) -> Any:
    """A request with some metrics of any kind."""
    whole = None
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["gauge", "sum", "histogram", "exponential_histogram", "summary"]))
        points = draw(st.lists(POINTS if kind in ("gauge", "sum") else SUMS, max_size=4))
        if kind == "summary":
            points = [{name: item for name, item in point.items() if name != "sum"} for point in points]
        temporality, resource, scope = draw(st.sampled_from([0, 1, 2, 7])), draw(ATTRIBUTES), draw(TEXT)
        request = metrics(kind, draw(NAMES), *points, temporality=temporality, resource=resource, scope=scope)
        whole = whole or type(request)()
        whole.MergeFrom(request)
    return whole


LOG = st.fixed_dictionaries(
    {"attributes": ATTRIBUTES, "event_name": NAMES, "time_unix_nano": TIMES},
    optional={
        "body": VALUES | st.floats(0, 1),
        "observed_time_unix_nano": TIMES,
        "severity_number": st.integers(0, 24),
        "severity_text": TEXT,
        "trace_id": st.binary(min_size=16, max_size=16) | st.binary(max_size=3),
        "span_id": st.binary(min_size=8, max_size=8),
        "flags": st.integers(0, 2**32 - 1),
    },
)
LOGS = st.builds(lambda records, resource: logs(*records, resource=resource), st.lists(LOG, max_size=5), ATTRIBUTES)
REQUESTS = metrics_requests() | LOGS


def tried(count: int) -> hypothesis_settings:
    return hypothesis_settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


def rewritten(value: Any, choice: random.Random) -> Any:
    """The same request in JSON as another writer has it: 64-bit integers as numbers, unknown fields, another order."""
    if isinstance(value, list):
        return [rewritten(item, choice) for item in value]
    if not isinstance(value, dict):
        return value
    items = [(name, rewritten(item, choice)) for name, item in value.items()]
    items = [
        (name, int(item) if name in INTEGERS and choice.random() < 0.5 else item)
        for name, item in items
    ]  # fmt: skip
    if choice.random() < 0.3:
        items.append(("unknownField", {"x": [1, None]}))
    if choice.random() < 0.2:
        items.append((choice.choice(["scope_metrics", "time_unix_nano"]), 5))  # no names of OTLP's JSON
    choice.shuffle(items)
    return dict(items)


INTEGERS = {"intValue", "asInt", "timeUnixNano", "startTimeUnixNano", "observedTimeUnixNano"}


def shuffled(request: Any, choice: random.Random) -> Any:
    """The request with attributes in another order, and integers that a float can hold as that float."""
    changed = type(request)()
    changed.CopyFrom(request)
    _shuffle(changed, choice)
    return changed


def _shuffle(message: Any, choice: random.Random) -> None:
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        items = value if field.is_repeated else [value]
        for item in items:
            _shuffle(item, choice)
        if field.name == "attributes" and len({pair.key for pair in value}) == len(value):
            pairs = list(value)
            choice.shuffle(pairs)
            del message.attributes[:]
            message.attributes.extend(pairs)
    if message.DESCRIPTOR.name == "AnyValue" and message.WhichOneof("value") == "int_value":
        as_float = float(message.int_value)
        if as_float == message.int_value and choice.random() < 0.5:
            message.double_value = as_float


def read(request: Any, body: bytes, form: str) -> tuple[Any, ...]:
    records = Records(latest=NOW / 1e9 + 100)
    signal = "logs" if "Logs" in type(request).__name__ else "metrics"
    getattr(protobuf if form == "protobuf" else json_text, f"read_{signal}")(body, records)
    assert records.received == len(records.rows) + len(records.refused)
    assert set(records.faults) == set(records.refused)
    faults = {position: [(f.code, f.field, f.detail) for f in found] for position, found in records.faults.items()}
    return records.rows, records.positions, json.dumps(records.refused), faults, records.conditions


@pytest.mark.slow
@tried(1_000)
@given(request=REQUESTS, seed=st.integers(0, 2**32))
def test_protobuf_and_json_of_a_request_are_the_same(library: None, request: Any, seed: int) -> None:
    choice = random.Random(seed)
    expected = read(request, request.SerializeToString(), "protobuf")
    written = as_json(request)
    assert read(request, json.dumps(written).encode(), "json") == expected
    assert read(request, json.dumps(rewritten(written, choice)).encode(), "json") == expected
    other = shuffled(request, choice)
    assert read(other, other.SerializeToString(), "protobuf")[0] == expected[0]
    assert read(other, json.dumps(as_json(other)).encode(), "json")[0] == expected[0]


@pytest.fixture(scope="module", autouse=True)
def _users(otlp: Otlp) -> None:
    for user in USERS:
        query(otlp.database_url, "INSERT INTO users (user_id, name) VALUES (CAST(:u AS uuid), 'x')", u=user)


@pytest.mark.slow
@tried(150)
@given(request=REQUESTS, form=st.sampled_from(["protobuf", "json"]))
def test_all_is_stored_or_refused_and_once(otlp: Otlp, request: Any, form: str) -> None:
    """Stored + duplicates + refused = received, and the second sending, in the other form, changes nothing."""
    query(otlp.database_url, "TRUNCATE metrics")
    count, message = refused(post(otlp.url, request, as_=form))
    stored = query(otlp.database_url, "SELECT FROM metrics")
    points = _records(request)
    assert count <= points
    assert len(stored) + count <= points  # own ids may repeat in a request: these are duplicates
    if "metric.id" not in str(request) and "log.record.uid" not in str(request):
        assert len(stored) + count == points
    again = refused(post(otlp.url, request, as_="json" if form == "protobuf" else "protobuf"))
    assert again == (count, message)
    assert query(otlp.database_url, "SELECT count(*) FROM metrics") == [[len(stored)]]


def _records(request: Any) -> int:
    """How many records a request has, without those that say that they have no value."""
    if "Logs" in type(request).__name__:
        return sum(len(s.log_records) for r in request.resource_logs for s in r.scope_logs)
    found = [
        getattr(metric, kind).data_points
        for of_resource in request.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        if (kind := metric.WhichOneof("data"))
    ]
    return sum(not point.flags & 1 for points in found for point in points)
