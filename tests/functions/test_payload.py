"""Any payload of /ingest/: what the contract allows is stored equal, what it does not is refused with a listed code."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pg8000.native
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics_ingest.errors import CODES
from metrics_ingest.settings import read_database
from metrics_ingest.storage.driver import connect
from support.processes import Stack

VALUES = {
    "talked_time": st.floats(0, 86400) | st.integers(0, 86400) | st.booleans(),
    "microphone_used": st.sampled_from([0, 1, 0.0, 1.0, True, False]),
    "speaker_used": st.sampled_from([0, 1, 0.0, 1.0, True, False]),
    "voice_sentiment": st.floats(-1, 1) | st.integers(-1, 1) | st.booleans(),
}
OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
INSTANTS = st.datetimes(datetime(2000, 1, 1), datetime(2026, 11, 20), timezones=st.just(UTC))
IDS = st.uuids(allow_nil=False).flatmap(lambda one: st.sampled_from([str(one), str(one).upper(), one.hex]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def valid(draw: st.DrawFn) -> tuple[dict[str, Any], datetime]:
    """A metric that the contract allows, but for its user, and its instant."""
    metric_type = draw(st.sampled_from(list(VALUES)))
    instant = draw(INSTANTS)
    written = instant.astimezone(draw(OFFSETS)).isoformat(sep=draw(st.sampled_from(["T", "t", " "])))
    metric = {"metric_type": metric_type, "value": draw(VALUES[metric_type]), "timestamp": written}
    for name in ("metric_id", "session_id"):
        if draw(st.booleans()):
            metric[name] = draw(IDS)
    return metric, instant


@pytest.fixture(scope="module")
def database(stack: Stack) -> Iterator[pg8000.native.Connection]:
    connection = connect(read_database({"DATABASE_URL": stack.database_url}), 30)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as open_session:
        yield open_session


@pytest.fixture(scope="module")
def user_id(stack: Stack) -> str:
    return stack.user()


@settings(max_examples=200, deadline=None)
@given(drawn=valid())
def test_what_is_allowed_is_stored_equal(
    stack: Stack, database: pg8000.native.Connection, session: requests.Session, drawn: tuple[dict[str, Any], datetime]
) -> None:
    metric, instant = drawn
    user_id = str(uuid4())
    database.run("INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=user_id)
    answer = session.post(stack.ingest.url, json={"user_id": user_id, **metric}, timeout=10)
    assert answer.status_code == 200, answer.text
    ((stored_at, metric_id, session_id, metric_type, value),) = database.run(
        "SELECT timestamp, metric_id, session_id, metric_type, value FROM metrics WHERE user_id = :u", u=user_id
    )
    assert (stored_at, metric_type, value) == (instant, metric["metric_type"], float(metric["value"]))
    assert answer.headers["Metric-Id"] == str(metric_id)
    for name, stored in (("metric_id", metric_id), ("session_id", session_id)):
        if name in metric:
            assert stored.hex == metric[name].replace("-", "").lower()


@settings(max_examples=200, deadline=None)
@given(
    drawn=valid(),
    changes=st.dictionaries(
        st.sampled_from(["user_id", "metric_type", "value", "timestamp", "metric_id", "session_id"])
        | st.text(max_size=8),
        JSON,
        min_size=1,
        max_size=3,
    ),
)
def test_what_is_not_allowed_is_refused_with_a_listed_code(
    stack: Stack,
    session: requests.Session,
    user_id: str,
    drawn: tuple[dict[str, Any], datetime],
    changes: dict[str, Any],
) -> None:
    """Whatever JSON stands in a field, a true value aside, each wrong field is named and nothing is stored."""
    metric = {"user_id": user_id, **drawn[0], **changes}
    answer = session.post(stack.ingest.url, data=json.dumps(metric).encode(), timeout=10)
    wrong = set(changes)
    if isinstance(changes.get("value"), bool | int | float):
        wrong.discard("value")  # maybe in range, and told only when nothing else is wrong
    if answer.status_code == 200:
        assert not wrong
        return
    problem = answer.json()
    assert answer.status_code == CODES[problem["code"]] < 500
    assert {error["field"] for error in problem["errors"]} in (wrong, wrong | {"value"})
    assert all(error["code"] in CODES for error in problem["errors"])


@settings(max_examples=150, deadline=None)
@given(body=st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("function", ["ingest", "ingest_batch", "users"])
def test_any_body_has_an_answer(stack: Stack, session: requests.Session, function: str, body: bytes) -> None:
    answer = session.post(getattr(stack, function).url, data=body, timeout=10)
    report = answer.json()
    if "received" in report:
        assert (answer.status_code, report["rejected"]) == (422, report["received"])
    else:
        assert answer.status_code == CODES[report["code"]] < 500
