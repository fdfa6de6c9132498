"""POST /ingest/: one metric, from HTTP bytes to a row."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid3, uuid4

import pytest

from support.processes import Postgres, Stack, function


@pytest.fixture(scope="module", params=["tuned", "stock"])
def stack(postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Functions of this module's own: the contract holds with either SERVER."""
    url, chosen = postgres.clone(), {"SERVER": request.param}
    with ExitStack() as running:
        servers = [running.enter_context(function(name, url, **chosen)) for name in ("ingest", "ingest_batch", "users")]
        yield Stack(url, *servers)
        for server in servers:
            assert "internal error" not in server.log, server.log


def test_answer_is_word_for_word_that_of_the_original_service(stack: Stack, metric: dict[str, Any]) -> None:
    answer = stack.send(metric)
    assert (answer.status_code, answer.content) == (200, b'{"message":"Metric stored successfully!"}')
    assert answer.headers["Metric-Id"] == metric["metric_id"]
    assert answer.headers["Content-Type"] == "application/json"
    assert "Idempotent-Replayed" not in answer.headers


def test_row_says_what_was_sent(stack: Stack, metric: dict[str, Any]) -> None:
    session_id = str(uuid4())
    before = datetime.now(UTC)
    stack.send({**metric, "session_id": session_id, "timestamp": "2024-08-08T14:34:56.123456+02:00"})
    ((user_id, timestamp, metric_id, session, metric_type, value, received_at, _),) = stack.stored(metric["user_id"])
    assert (str(user_id), str(metric_id), str(session)) == (metric["user_id"], metric["metric_id"], session_id)
    assert timestamp == datetime(2024, 8, 8, 12, 34, 56, 123456, UTC)
    assert (metric_type, value) == ("talked_time", 12.34)
    assert before - timedelta(seconds=1) < received_at < datetime.now(UTC) + timedelta(seconds=1)
    ((start,),) = stack.query("SELECT start_time FROM sessions WHERE user_id = :u", u=metric["user_id"])
    assert start == timestamp


@pytest.mark.parametrize(
    "written",
    [
        "2024-08-08T12:34:56.000007Z",
        "2024-08-08T14:34:56.000007+02:00",
        "2024-08-07T13:04:56.000007-23:30",
        "2024-08-09T12:33:56.000007+23:59",
        "2024-08-08 12:34:56.0000079z",
        "2024-08-08t07:04:56.000007-05:30",
        "2024-08-08T14:34:56.000007+0200",
        "2024-08-08T07:04:56.000007-0530",
        "2024-08-08 12:34:56.000007+00",
        "2024-08-08T07:34:56.000007-05",
    ],
)
def test_instant_is_kept_to_the_microsecond_whatever_the_offset(
    stack: Stack, metric: dict[str, Any], written: str
) -> None:
    assert stack.send({**metric, "timestamp": written}).status_code == 200
    ((instant,),) = stack.query("SELECT timestamp FROM metrics WHERE user_id = :u", u=metric["user_id"])
    assert instant == datetime(2024, 8, 8, 12, 34, 56, 7, UTC)


def test_metrics_of_a_utc_day_share_an_implicit_session(stack: Stack, metric: dict[str, Any]) -> None:
    for timestamp in ("2024-08-08T00:00:00Z", "2024-08-09T01:59:59+02:00", "2024-08-09T00:00:00Z"):
        assert stack.send({**metric, "metric_id": str(uuid4()), "timestamp": timestamp}).status_code == 200
    first, second, third = (row[3] for row in stack.stored(metric["user_id"]))
    assert first == second != third
    assert first == uuid3(UUID(metric["user_id"]), date(2024, 8, 8).isoformat())


def test_null_for_an_optional_field_is_the_same_as_leaving_it_out(stack: Stack, metric: dict[str, Any]) -> None:
    empty = metric | {"metric_id": None, "session_id": None}
    key = {"Idempotency-Key": str(uuid4())}
    first, second = stack.send(empty, **key), stack.send_batch([empty], **key)
    assert (first.status_code, second.json()["duplicates"]) == (200, 1)
    ((_, _, metric_id, session, *_),) = stack.stored(metric["user_id"])
    assert str(metric_id) == first.headers["Metric-Id"]
    assert session == uuid3(UUID(metric["user_id"]), "2024-08-08")


@pytest.mark.parametrize("alone", [True, False])
def test_session_starts_with_its_earliest_metric_in_whatever_order_they_come(
    stack: Stack, metric: dict[str, Any], alone: bool
) -> None:
    """The process has seen the session stored, and must still move its start back; a retry moves it no more."""
    session_id = str(uuid4())
    times = [f"2024-08-08T12:{minute:02}:00Z" for minute in (30, 40, 20, 25, 10, 50)]
    earliest = times[0]
    for time in times + times:
        one = metric | {"session_id": session_id, "timestamp": time}
        late = one | {"timestamp": times[5], "metric_id": str(uuid4())}
        answer = stack.send(one) if alone else stack.send_batch([late, one])
        assert answer.status_code == 200
        earliest = min(earliest, time)
        ((start,),) = stack.query("SELECT start_time FROM sessions WHERE session_id = :s", s=session_id)
        assert start == datetime.fromisoformat(earliest)


def test_session_id_belongs_to_one_user(stack: Stack, metric: dict[str, Any]) -> None:
    session_id = str(uuid4())
    for user_id in (metric["user_id"], stack.user()):
        assert stack.send({**metric, "user_id": user_id, "session_id": session_id}).status_code == 200
    assert len(stack.query("SELECT FROM sessions WHERE session_id = :s", s=session_id)) == 2


@pytest.mark.parametrize(("sent", "stored"), [(True, 1.0), (False, 0.0), (1, 1.0), (0, 0.0)])
def test_flags_are_numbers_or_booleans(stack: Stack, metric: dict[str, Any], sent: object, stored: float) -> None:
    assert stack.send({**metric, "metric_type": "microphone_used", "value": sent}).status_code == 200
    assert [row[5] for row in stack.stored(metric["user_id"])] == [stored]


def test_metric_without_an_id_gets_one(stack: Stack, metric: dict[str, Any]) -> None:
    del metric["metric_id"]
    ids = {stack.send(metric).headers["Metric-Id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(str(UUID(text)) == text for text in ids)
    assert {str(row[2]) for row in stack.stored(metric["user_id"])} == ids


def test_repeat_is_stored_once_and_said_to_be_a_replay(stack: Stack, metric: dict[str, Any]) -> None:
    first, second = stack.send(metric), stack.send(metric)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.content == second.content
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert len(stack.stored(metric["user_id"])) == 1


def test_fifty_at_once_are_one_row(stack: Stack, metric: dict[str, Any]) -> None:
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: stack.send(metric), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers].count("true") == 49
    assert len(stack.stored(metric["user_id"])) == 1


@pytest.mark.parametrize(
    "change", [{"value": 99}, {"metric_type": "voice_sentiment", "value": 0.5}, {"session_id": str(uuid4())}]
)
def test_repeat_that_says_something_else_is_a_conflict(
    stack: Stack, metric: dict[str, Any], change: dict[str, Any]
) -> None:
    stack.send(metric)
    answer = stack.send({**metric, **change})
    assert (answer.status_code, answer.json()["code"]) == (409, "metric_conflict")
    assert len(stack.stored(metric["user_id"])) == 1


def test_idempotency_key_stands_in_for_the_metric_id(stack: Stack, metric: dict[str, Any]) -> None:
    del metric["metric_id"]
    first, second = (stack.send(metric, **{"Idempotency-Key": "call-7"}) for _ in range(2))
    assert first.headers["Metric-Id"] == second.headers["Metric-Id"]
    assert second.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in stack.send(metric, **{"Idempotency-Key": "call-8"}).headers
    assert len(stack.stored(metric["user_id"])) == 2


def test_metric_of_any_month_has_a_place(stack: Stack, metric: dict[str, Any]) -> None:
    for year, month in itertools.product((2000, 2024, datetime.now(UTC).year), (1, 2)):
        assert stack.send({**metric, "timestamp": f"{year}-{month:02}-01T00:00:00Z"}).status_code == 200
    assert len(stack.stored(metric["user_id"])) == 6


def test_metric_type_registered_meanwhile_is_accepted_at_once(stack: Stack, metric: dict[str, Any]) -> None:
    metric |= {"metric_type": "laughs", "value": 3}
    assert stack.send(metric).json()["code"] == "unknown_metric_type"
    stack.query("INSERT INTO metric_types (metric_type, kind, aggregation) VALUES ('laughs', 'counter', 'sum')")
    assert stack.send(metric).status_code == 200
    stack.query("UPDATE metric_types SET retired_at = now() WHERE metric_type = 'laughs'")
    answer = stack.send({**metric, "metric_id": str(uuid4())})
    assert (answer.json()["code"], answer.json()["detail"]) == ("unknown_metric_type", "metric type laughs is retired")
