"""What is stored for a record, why a record is refused, and what its sender is answered."""

import json
import time
from typing import Any
from uuid import UUID, uuid4

import pytest

from metrics_ingest.otlp.records import metric_type_of
from otlp.conftest import Otlp
from support.console import Console
from support.metrics import register
from support.otlp import CUMULATIVE, DELTA, logs, metrics, post, refused
from support.processes import function, query

AT = 1_723_120_496_123_456_789  # 2024-08-08T12:34:56.123456789Z
FORMS = pytest.mark.parametrize("form", ["protobuf", "json"])


@FORMS
def test_point_is_stored_with_all_its_fields(otlp: Otlp, form: str) -> None:
    user, session, metric_id = otlp.user(), str(uuid4()), str(uuid4())
    attributes = {"user.id": user, "session.id": session, "metric.id": metric_id, "other": [1, {"a": b"b"}]}
    request = metrics("gauge", "voice.sentiment", {"as_double": -0.5, "time_unix_nano": AT, "attributes": attributes})
    assert refused(post(otlp.url, request, as_=form)) == (0, "")
    assert otlp.rows(user) == [
        {
            "metric_type": "voice_sentiment",
            "value": -0.5,
            "timestamp": "2024-08-08T12:34:56.123456+00:00",  # the microsecond below
            "session_id": session,
            "metric_id": metric_id,
        }
    ]


@FORMS
def test_event_is_stored_with_all_its_fields(otlp: Otlp, form: str) -> None:
    user, session, metric_id = otlp.user(), str(uuid4()), str(uuid4())
    attributes = {"user.id": user, "session.id": session, "log.record.uid": metric_id, "value": 2}
    record = {"event_name": "Talked-Time", "time_unix_nano": AT, "attributes": attributes, "body": "some text"}
    assert refused(post(otlp.url, logs(record), as_=form)) == (0, "")
    (row,) = otlp.rows(user)
    assert (row["metric_type"], row["value"], row["timestamp"]) == (
        "talked_time",
        2,
        "2024-08-08T12:34:56.123456+00:00",
    )
    assert (row["session_id"], row["metric_id"]) == (session, metric_id)


@FORMS
def test_resource_stands_in_for_attributes_that_a_record_does_not_have(otlp: Otlp, form: str) -> None:
    one, two, session, other = otlp.user(), otlp.user(), str(uuid4()), str(uuid4())
    resource = {"user.id": one, "session.id": session}
    points: list[dict[str, Any]] = [
        {"as_double": 1.0},
        {"as_double": 2.0, "attributes": {"user.id": two, "session.id": other}},
    ]
    assert refused(post(otlp.url, metrics("gauge", "talked_time", *points, resource=resource), as_=form)) == (0, "")
    assert refused(post(otlp.url, logs({"event_name": "talked_time", "body": 3}, resource=resource))) == (0, "")
    assert {(row["value"], row["session_id"]) for row in otlp.rows(one)} == {(1, session), (3, session)}
    assert [(row["value"], row["session_id"]) for row in otlp.rows(two)] == [(2, other)]


def test_session_without_an_id_is_that_of_the_day(otlp: Otlp, stack: Any) -> None:
    """The same as for a metric that is sent to ingest."""
    user = stack.user()
    query(otlp.database_url, "INSERT INTO users (user_id, name) VALUES (CAST(:u AS uuid), 'x')", u=user)
    metric = {"user_id": user, "metric_type": "talked_time", "value": 1, "timestamp": "2024-08-08T00:00:00Z"}
    assert stack.send(metric).status_code == 200
    point = {"as_double": 1.0, "time_unix_nano": AT, "attributes": {"user.id": user}}
    assert refused(post(otlp.url, metrics("gauge", "talked_time", point))) == (0, "")
    (row,) = otlp.rows(user)
    assert UUID(row["session_id"]) == stack.stored(user)[0][3]


VALUES = [
    ({"body": 1.5}, 1.5),
    ({"body": 2}, 2),
    ({"body": True}, 1),
    ({"body": False}, 0),
    ({"body": 0}, 0),
    ({"body": "5", "attributes": {"value": 6}}, 6),
    ({"body": 5, "attributes": {"value": 6.5}}, 6.5),
    ({"attributes": {"value": True}}, 1),
]


@FORMS
@pytest.mark.parametrize(("fields", "value"), VALUES)
def test_value_of_an_event_is_its_attribute_or_body(
    otlp: Otlp, form: str, fields: dict[str, Any], value: float
) -> None:
    user = otlp.user()
    record = {"event_name": "talked_time", **fields, "attributes": {"user.id": user, **fields.get("attributes", {})}}
    assert refused(post(otlp.url, logs(record), as_=form)) == (0, "")
    assert otlp.values(user) == [("talked_time", value)]


@FORMS
def test_event_without_a_time_has_the_time_at_which_it_was_observed(otlp: Otlp, form: str) -> None:
    user = otlp.user()
    record = {"event_name": "talked_time", "body": 1, "attributes": {"user.id": user}}
    times = {"time_unix_nano": 0, "observed_time_unix_nano": AT}
    assert refused(post(otlp.url, logs({**record, **times}), as_=form)) == (0, "")
    assert otlp.rows(user)[0]["timestamp"] == "2024-08-08T12:34:56.123456+00:00"


@pytest.mark.parametrize(
    ("name", "metric_type"),
    [
        ("talked_time", "talked_time"),
        ("app.voice-sentiment.X2", "app_voice_sentiment_x2"),
        ("a" * 64, "a" * 64),
        ("a" * 65, ""),
        ("a" * 1_000_000, ""),
        ("", ""),
        ("2fast", ""),
        ("_x", ""),
        ("with space", ""),
        ("größe", ""),
        ("x/y", ""),
        ("x\n", ""),
        ("İ", ""),
    ],
)
def test_metric_type_is_the_name_in_lower_case_with_underscores(name: str, metric_type: str) -> None:
    assert metric_type_of(name) == metric_type


def point(user: str, **fields: Any) -> dict[str, Any]:
    return {**fields, "attributes": {"user.id": user, **fields.get("attributes", {})}}


@FORMS
@pytest.mark.parametrize(
    ("kind", "name", "temporality", "fields", "stored"),
    [
        ("gauge", "voice_sentiment", 0, {"as_double": 0.5}, 0.5),
        ("gauge", "talked_time", 0, {"as_int": 7}, 7),
        ("gauge", "talked_time", 0, {"as_int": 0}, 0),
        ("gauge", "talked_time", 0, {"as_double": 0.0}, 0),
        ("sum", "talked_time", DELTA, {"as_double": 2.5}, 2.5),
        ("sum", "talked_time", DELTA, {"as_int": 2}, 2),
        ("sum", "voice_sentiment", DELTA, {"as_double": 0.5}, 0.5),
        ("sum", "voice_sentiment", CUMULATIVE, {"as_double": 0.5}, 0.5),  # an up-down counter: its last value counts
        ("histogram", "talked_time", DELTA, {"count": 2, "sum": 5.5, "bucket_counts": [2]}, 5.5),
        ("exponential_histogram", "talked_time", DELTA, {"count": 2, "sum": 6.5}, 6.5),
        ("histogram", "talked_time", DELTA, {"count": 0, "sum": 0.0}, 0),
    ],
)
def test_points_that_are_stored(
    otlp: Otlp, form: str, kind: str, name: str, temporality: int, fields: dict[str, Any], stored: float
) -> None:
    user = otlp.user()
    request = metrics(kind, name, point(user, **fields), temporality=temporality)
    assert refused(post(otlp.url, request, as_=form)) == (0, "")
    assert otlp.values(user) == [(name, stored)]


@FORMS
@pytest.mark.parametrize(
    ("kind", "name", "temporality", "fields", "code", "hint"),
    [
        ("sum", "talked_time", CUMULATIVE, {"as_int": 1}, "cumulative_temporality", "TEMPORALITY_PREFERENCE=delta"),
        ("sum", "talked_time", 0, {"as_int": 1}, "cumulative_temporality", "TEMPORALITY_PREFERENCE=delta"),
        (
            "histogram",
            "talked_time",
            CUMULATIVE,
            {"sum": 1.0},
            "cumulative_temporality",
            "TEMPORALITY_PREFERENCE=delta",
        ),
        ("exponential_histogram", "talked_time", 2, {"sum": 1.0}, "cumulative_temporality", "PREFERENCE=delta"),
        ("histogram", "voice_sentiment", DELTA, {"sum": 0.5}, "invalid_value", "a gauge, or as an event"),
        ("histogram", "voice_sentiment", CUMULATIVE, {"sum": 0.5}, "invalid_value", "a gauge, or as an event"),
        ("histogram", "talked_time", DELTA, {"count": 1}, "missing_field", "does not have"),
        ("exponential_histogram", "talked_time", DELTA, {"count": 1}, "missing_field", "does not have"),
        ("summary", "talked_time", 0, {"sum": 1.0}, "missing_field", "use a counter, a gauge or a histogram"),
        ("gauge", "talked_time", 0, {}, "missing_field", "value of the point"),
        ("gauge", "talked_time", 0, {"as_double": float("nan")}, "invalid_value", "finite"),
        ("gauge", "talked_time", 0, {"as_double": float("inf")}, "invalid_value", "finite"),
        ("gauge", "talked_time", 0, {"as_double": -1.0}, "value_out_of_range", "between 0 and 86400"),
        ("gauge", "talked_time", 0, {"as_int": 2**63 - 1}, "value_out_of_range", "86400"),
        ("gauge", "microphone_used", 0, {"as_double": 0.5}, "value_out_of_range", "0 or 1"),
        ("gauge", "not.registered", 0, {"as_int": 1}, "unknown_metric_type", "`metrics-ingest type add`"),
        ("sum", "not.registered", CUMULATIVE, {"as_int": 1}, "unknown_metric_type", "`metrics-ingest type add`"),
        ("histogram", "not.registered", DELTA, {"sum": 1.0}, "unknown_metric_type", "`metrics-ingest type add`"),
        ("gauge", "Not A Name", 0, {"as_int": 1}, "invalid_metric_type", "name of the instrument"),
        ("gauge", "", 0, {"as_int": 1}, "missing_field", "name of the instrument"),
        ("gauge", "talked_time", 0, {"as_int": 1, "time_unix_nano": 0}, "missing_field", "time_unix_nano"),
        ("gauge", "talked_time", 0, {"as_int": 1, "time_unix_nano": 1}, "timestamp_out_of_range", "2000-01-01"),
        ("gauge", "talked_time", 0, {"as_int": 1, "time_unix_nano": 2**64 - 1}, "timestamp_out_of_range", "2200"),
        ("gauge", "talked_time", 0, {"as_int": 1, "attributes": {"session.id": "x"}}, "invalid_uuid", "session.id"),
        ("gauge", "talked_time", 0, {"as_int": 1, "attributes": {"metric.id": 5}}, "invalid_uuid", "metric.id"),
        ("gauge", "talked_time", 0, {"as_int": 1, "attributes": {"user.id": "greg"}}, "invalid_uuid", "user.id"),
        ("gauge", "talked_time", 0, {"as_int": 1, "attributes": {"user.id": ["x"]}}, "invalid_uuid", "user.id"),
        ("gauge", "talked_time", 0, {"as_int": 1, "attributes": {"user.id": str(UUID(int=0))}}, "invalid_uuid", ""),
        ("gauge", "talked_time", 0, {"as_int": 1, "attributes": {"user.id": str(uuid4())}}, "unknown_user", "/users/"),
    ],
)
def test_points_that_are_refused_say_what_to_do(
    otlp: Otlp, form: str, kind: str, name: str, temporality: int, fields: dict[str, Any], code: str, hint: str
) -> None:
    user = otlp.user()
    fields = {**fields, "attributes": {"user.id": user, "session.id": str(uuid4()), **fields.get("attributes", {})}}
    count, message = refused(post(otlp.url, metrics(kind, name, fields, temporality=temporality), as_=form))
    assert count == 1
    assert f"{code}: " in message
    assert hint in message
    assert otlp.rows(user) == []


def test_points_too_far_ahead_are_refused(otlp: Otlp) -> None:
    user = otlp.user()
    day = 86_400 * 10**9
    ahead = [point(user, as_int=1, time_unix_nano=time.time_ns() + offset) for offset in (day - 10**10, day + 10**10)]
    count, message = refused(post(otlp.url, metrics("gauge", "talked_time", *ahead)))
    assert count == 1
    assert "timestamp_out_of_range: timestamp must be from 2000-01-01 to" in message
    assert len(otlp.rows(user)) == 1


@FORMS
@pytest.mark.parametrize(
    ("fields", "code", "hint"),
    [
        ({"event_name": ""}, "missing_field", "event name"),
        ({"event_name": "not registered"}, "invalid_metric_type", "event name"),
        ({"body": "text"}, "invalid_value", "the attribute value, else a body"),
        ({"attributes": {"value": "1"}}, "invalid_value", "the attribute value, else a body"),
        ({"body": [1]}, "invalid_value", "the attribute value, else a body"),
        ({"body": {"a": 1}}, "invalid_value", "the attribute value, else a body"),
        ({"body": None}, "missing_field", "the attribute value, else a body"),
        ({"time_unix_nano": 0}, "missing_field", "observed_time_unix_nano"),
        ({"attributes": {"user.id": None}}, "missing_field", "the attribute user.id"),
    ],
)
def test_events_that_are_refused_say_what_to_do(
    otlp: Otlp, form: str, fields: dict[str, Any], code: str, hint: str
) -> None:
    user = otlp.user()
    record = {"event_name": "talked_time", "body": 1, "time_unix_nano": AT, **fields}
    record["attributes"] = {"user.id": user, "session.id": str(uuid4()), **fields.get("attributes", {})}
    count, message = refused(post(otlp.url, logs(record), as_=form))
    assert count == 1
    assert f"{code}: " in message
    assert hint in message


@FORMS
def test_points_without_a_recorded_value_are_skipped(otlp: Otlp, form: str) -> None:
    user = otlp.user()
    for kind in ("gauge", "sum", "histogram", "exponential_histogram", "summary"):
        request = metrics(kind, "talked_time", point(user, flags=1), point("x", flags=1))
        assert refused(post(otlp.url, request, as_=form)) == (0, "")
    assert otlp.rows(user) == []


def test_each_metric_type_of_a_request_has_its_own_aggregation(otlp: Otlp) -> None:
    user = otlp.user()
    request = metrics("histogram", "voice_sentiment", point(user, sum=0.5))
    for name in ("talked_time", "not_registered", "microphone_used"):
        request.MergeFrom(metrics("histogram", name, point(user, sum=1.0)))
    count, message = refused(post(otlp.url, request))
    assert count == 3
    assert all(f"{name} is aggregated by" in message for name in ("voice_sentiment", "microphone_used"))
    assert otlp.values(user) == [("talked_time", 1)]


def test_unregistered_user_is_the_records_own_fault(otlp: Otlp) -> None:
    user = otlp.user()
    request = metrics(
        "gauge", "talked_time", point(user, as_int=1), point(str(uuid4()), as_int=2), point(user, as_int=3)
    )
    count, _ = refused(post(otlp.url, request))
    assert count == 1
    assert [value for _, value in otlp.values(user)] == [1, 3]


def test_id_of_an_event_that_is_no_uuid_is_one_of_its_attributes(otlp: Otlp) -> None:
    """As a ULID, which the semantic conventions recommend."""
    user = otlp.user()
    record = {"event_name": "talked_time", "body": 1, "time_unix_nano": AT}
    ulids = ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAW")
    records = [{**record, "attributes": {"user.id": user, "log.record.uid": ulid}} for ulid in ulids]
    for _ in range(2):
        assert refused(post(otlp.url, logs(*records))) == (0, "")
    assert len({row["metric_id"] for row in otlp.rows(user)}) == 2


def test_own_id_with_another_value_is_a_conflict(otlp: Otlp) -> None:
    user, metric_id = otlp.user(), str(uuid4())
    for value, expected in ((1, 0), (1, 0), (2, 1)):
        attributes = {"metric.id": metric_id}
        request = metrics("gauge", "talked_time", point(user, as_int=value, time_unix_nano=AT, attributes=attributes))
        count, message = refused(post(otlp.url, request))
        assert count == expected
    assert "metric_conflict" in message
    assert otlp.values(user) == [("talked_time", 1)]


def test_refused_record_is_kept_as_a_metric_and_stored_by_a_replay(postgres: Any) -> None:
    """Once, also when the sender sends it again; what must never be stored is not stored by a replay either."""
    url = postgres.clone()
    user = register(url)
    console = Console(url)
    request = metrics("gauge", "heart.rate", point(user, as_double=61.5, time_unix_nano=AT))
    with function("ingest_otlp", url) as server:
        assert refused(post(server.url, request))[0] == 1
        for kind, name, value in (
            ("sum", "talked_time", {"as_int": 1}),
            ("histogram", "voice_sentiment", {"sum": 1.0}),
        ):
            again = metrics(kind, name, point(user, **value), temporality=CUMULATIVE if kind == "sum" else DELTA)
            assert refused(post(server.url, again))[0] == 1
        kept = query(url, "SELECT convert_from(payload, 'UTF8') FROM rejected_metrics WHERE codes[1] LIKE 'unknown%'")
        (metric,) = [json.loads(payload) for (payload,) in kept]
        assert (metric["user_id"], metric["metric_type"], metric["value"]) == (user, "heart_rate", 61.5)
        assert metric["timestamp"] == "2024-08-08T12:34:56.123456Z"
        console.run("type", "add", "heart_rate", "--kind", "gauge")
        replayed = console.json("rejected", "replay")
        assert (replayed["stored"], replayed["still_rejected"]) == (1, 2)
        assert refused(post(server.url, request)) == (0, "")
    rows = query(url, "SELECT metric_type, value FROM metrics")
    assert [tuple(row) for row in rows] == [("heart_rate", 61.5)]
