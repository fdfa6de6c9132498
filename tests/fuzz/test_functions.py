"""The running functions: raw bytes, hostile bodies, random metrics and batches, compared with what the contract says.

`make fuzz` does the same for longer. What it finds belongs into corpus/.
"""

import gzip
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pg8000.native
import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st

from fuzz.oracle import BATCHES, NOON, ONE, RANGES, Oracle
from fuzz.payloads import (
    BODIES,
    BYTES,
    CHANGES,
    CORPUS,
    HEADERS,
    HTTP,
    JSON,
    NAMES,
    USER,
    allowed_metrics,
    examples,
    mutated,
)
from metrics_ingest.errors import CODES
from support.metrics import register
from support.processes import Postgres, Server, Stack, connected, function, query
from support.raw import exchange


@pytest.fixture(scope="module")
def targets(postgres: Postgres) -> Iterator[Stack]:
    """The three functions. At the end they run, have warned of nothing, and have stored nothing that is forbidden."""
    url = postgres.clone()
    register(url, USER)
    with function("ingest", url) as one, function("ingest_batch", url) as many, function("users", url) as users:
        yield Stack(url, one, many, users)
        for server in (one, many, users):
            assert server.process.poll() is None
            lines = server.log.splitlines()
            assert lines
            assert [line for line in lines if '"severity":"INFO"' not in line] == []
        assert forbidden_rows(url) == {}


@pytest.fixture(scope="module")
def database(targets: Stack) -> Iterator[pg8000.native.Connection]:
    with connected(targets.database_url) as connection:
        yield connection


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as open_session:
        yield open_session


def forbidden_rows(url: str) -> dict[str, list[Any]]:
    """What is stored against the contract, as the database itself sees it."""
    rules = {
        "value": """SELECT m.* FROM metrics m JOIN metric_types t USING (metric_type)
            WHERE value IN ('NaN', 'Infinity', '-Infinity') OR value < t.min_value OR value > t.max_value
               OR t.kind = 'flag' AND value NOT IN (0, 1)""",
        "type": "SELECT * FROM metrics WHERE metric_type NOT IN (SELECT metric_type FROM metric_types)",
        "timestamp": "SELECT * FROM metrics WHERE timestamp < '2000-01-01Z' OR timestamp > now() + interval '1 day'",
        "user": "SELECT * FROM metrics WHERE user_id NOT IN (SELECT user_id FROM users)",
        "session": "SELECT * FROM metrics m WHERE NOT EXISTS (SELECT FROM sessions s"
        " WHERE (s.user_id, s.session_id) = (m.user_id, m.session_id))",
        "nil": "SELECT * FROM users WHERE user_id = '00000000-0000-0000-0000-000000000000'",
        "name": r"SELECT * FROM users WHERE name !~ '[^\s]' OR length(name) > 200 OR name ~ '[\x01-\x1f\x7f]'",
        "email": r"""SELECT * FROM users
            WHERE email !~ '^[^\s@\x01-\x1f]+@([^\s@]+\.[^\s@]+|localhost)$' OR length(email) > 320""",
    }
    return {name: rows for name, sql in rules.items() if (rows := query(url, sql))}


def each(targets: Stack) -> tuple[Server, ...]:
    return targets.ingest, targets.ingest_batch, targets.users


def is_no_failure(answer: bytes) -> bool:
    """Whether the answer is 2xx, 4xx or 100, or there is none."""
    return not answer or answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.1 100"))


def check(answer: requests.Response) -> None:
    """The answer is a problem with its listed status, or a report whose counts agree, or a success."""
    assert answer.status_code in {200, 201, 207, 400, 409, 413, 415, 422}
    report = answer.json()
    if "received" in report:
        accepted = report["stored"] + report["duplicates"]
        assert report["received"] == accepted + report["rejected"]
        assert answer.status_code == (200 if not report["rejected"] else 207 if accepted else 422)
        assert len({error["index"] for error in report["errors"]}) == report["rejected"]
        assert all(error["code"] in CODES for error in report["errors"])
    elif answer.status_code >= 400:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.status_code == CODES[report["code"]]
        assert report["errors"][0]["code"] == report["code"]


@pytest.mark.parametrize("name", HTTP)
def test_requests_of_the_corpus_break_nothing(targets: Stack, name: str) -> None:
    data = (CORPUS / "http" / name).read_bytes()
    assert is_no_failure(exchange(targets.ingest.port, data, wait_s=0.2))
    for server in each(targets):
        assert is_no_failure(exchange(server.port, data, finish=True))


def test_functions_answer_after_all_that(targets: Stack) -> None:
    for server in each(targets):
        assert requests.get(f"{server.url}/health", timeout=10).ok


@pytest.mark.parametrize("name", BODIES)
def test_bodies_of_the_corpus_are_refused_or_right(targets: Stack, name: str) -> None:
    """Each is answered the same when it is sent again as gzip."""
    body, kind = (CORPUS / name).read_bytes(), name.partition("/")[0]
    answers = [requests.post(server.url, data=body, headers=HEADERS[kind], timeout=30) for server in each(targets)]
    for answer in answers:
        check(answer)
    if kind != "gzip":
        packed = {**HEADERS[kind], "Content-Encoding": "gzip"}
        again = [requests.post(s.url, data=gzip.compress(body), headers=packed, timeout=30) for s in each(targets)]
        assert [answer.json().get("code") for answer in again] == [answer.json().get("code") for answer in answers]


@pytest.mark.slow
@examples(100)
@given(name=st.sampled_from(HTTP), changes=CHANGES, target=st.integers(0, 2))
def test_mutated_requests_break_nothing(targets: Stack, name: str, changes: Any, target: int) -> None:
    data = mutated((CORPUS / "http" / name).read_bytes()[:5_000], changes)
    server = each(targets)[target]
    assert is_no_failure(exchange(server.port, data, finish=True)), data


@pytest.mark.slow
@examples(100)
@given(name=st.sampled_from(BODIES), changes=CHANGES, target=st.integers(0, 2))
@example(name="json/good.json", changes=[], target=0)
def test_mutated_bodies_are_refused_or_right(
    targets: Stack, session: requests.Session, name: str, changes: Any, target: int
) -> None:
    body, kind = mutated((CORPUS / name).read_bytes()[:20_000], changes), name.partition("/")[0]
    check(session.post(each(targets)[target].url, data=body, headers=HEADERS[kind], timeout=10))


@pytest.mark.slow
@examples(150)
@given(body=BYTES, kind=st.sampled_from(["json", "ndjson"]))
def test_any_body_is_refused_or_right(targets: Stack, session: requests.Session, body: bytes, kind: str) -> None:
    for server in each(targets):
        check(session.post(server.url, data=body, headers=HEADERS[kind], timeout=10))


@pytest.mark.slow
@examples(300)
@given(
    allowed=allowed_metrics(),
    value=st.none() | st.floats() | st.integers() | st.booleans(),
    when=st.none() | st.datetimes(),
    offset=st.integers(-1439, 1439),
)
def test_metric_is_stored_equal_or_refused(
    targets: Stack,
    database: pg8000.native.Connection,
    session: requests.Session,
    allowed: tuple[dict[str, Any], datetime],
    value: float | None,
    when: datetime | None,
    offset: int,
) -> None:
    """An allowed metric, in which the value or the instant may be replaced by any other, allowed or not."""
    user_id = str(uuid4())
    database.run("INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=user_id)
    metric, instant = {"user_id": user_id, **allowed[0]}, allowed[1]
    if value is not None:
        metric["value"] = value
    is_in_time = True
    if when is not None:
        local = when.replace(tzinfo=timezone(timedelta(minutes=offset)))
        metric["timestamp"] = local.isoformat()
        try:
            instant = local.astimezone(UTC)
        except OverflowError:  # before the year 1 or after 9999
            is_in_time = False
        else:
            is_in_time = datetime(2000, 1, 1, tzinfo=UTC) <= instant <= datetime.now(UTC) + timedelta(days=1)
    least, most = RANGES[metric["metric_type"]]
    is_flag = metric["metric_type"].endswith("_used")
    is_in_range = metric["value"] in (0, 1) if is_flag else least <= metric["value"] <= most
    answer = session.post(targets.ingest.url, data=json.dumps(metric).encode(), timeout=10)
    rows = database.run(
        "SELECT timestamp, metric_id, session_id, metric_type, value FROM metrics WHERE user_id = :u", u=user_id
    )
    if not (is_in_time and is_in_range):
        assert (answer.status_code, rows) in ((422, []), (400, []))
        return
    assert answer.status_code == 200, answer.text
    ((stored_at, metric_id, session_id, metric_type, stored_value),) = rows
    assert (stored_at, metric_type, stored_value) == (instant, metric["metric_type"], float(metric["value"]))
    assert answer.headers["Metric-Id"] == str(metric_id)
    for name, stored in (("metric_id", metric_id), ("session_id", session_id)):
        if name in metric:
            assert stored.hex == metric[name].replace("-", "").lower()


@pytest.mark.slow
@examples(200)
@given(
    allowed=allowed_metrics(),
    changes=st.dictionaries(st.sampled_from(NAMES[:6]) | st.text(max_size=8), JSON, min_size=1, max_size=3),
)
def test_each_wrong_field_is_named_with_a_listed_code(
    targets: Stack,
    session: requests.Session,
    allowed: tuple[dict[str, Any], datetime],
    changes: dict[str, Any],
) -> None:
    """Any JSON in the fields of a metric and in others: numbers and null for absent ones aside, none is allowed."""
    metric = {"user_id": USER, **allowed[0], **changes}
    answer = session.post(targets.ingest.url, data=json.dumps(metric).encode(), timeout=10)
    optional = ("session_id", "metric_id")
    wrong = {name for name, value in changes.items() if not (name in optional and value is None)}
    if isinstance(changes.get("value"), bool | int | float):
        wrong.discard("value")  # it may be in range, and is compared with it only when nothing else is wrong
    if answer.status_code == 200:
        assert not wrong
        return
    problem = answer.json()
    assert answer.status_code == CODES[problem["code"]] < 500
    if problem["code"] == "metric_conflict":  # an earlier example was stored with this identity, and another content
        assert not wrong
        return
    # A name that is well-formed is compared with the registered types only when nothing else is wrong.
    has_form = re.fullmatch("[a-z][a-z0-9_]{0,63}", str(changes.get("metric_type")))
    found = {error["field"] for error in problem["errors"]}
    assert wrong - ({"metric_type"} if has_form else set()) <= found <= wrong | {"value"}
    assert all(error["code"] in CODES for error in problem["errors"])


@pytest.mark.slow
@examples(200)
@given(batches=BATCHES)
def test_every_metric_of_a_batch_is_accounted_for(
    targets: Stack, database: pg8000.native.Connection, session: requests.Session, batches: list[Any]
) -> None:
    """One to four batches a user, of the same few identities: later ones meet what earlier ones have stored."""
    oracle = Oracle(str(uuid4()))
    database.run("INSERT INTO users (user_id, name) VALUES (:u, 'Greg')", u=oracle.user_id)
    for drawn, strict, form, packed in batches:
        items = [
            item | {"user_id": oracle.user_id} if isinstance(item, dict) and item.get("user_id") == "known" else item
            for item in drawn
        ]
        sent: Any = {"array": items, "object": {"metrics": items}}.get(form)
        body = (json.dumps(sent) if sent else "\n".join(map(json.dumps, items))).encode()
        headers = {"Content-Type": "application/json" if sent else "application/x-ndjson"}
        if strict:
            headers["Prefer"] = "handling=strict"
        if packed:
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        answer = session.post(targets.ingest_batch.url, data=body, headers=headers, timeout=30)
        report = answer.json()
        status, stored, duplicates, errors = oracle.answer(items, strict=strict)
        reported: dict[int, list[tuple[str, str | None]]] = {}
        for error in report["errors"]:
            reported.setdefault(error["index"], []).append((error["code"], error["field"]))
        assert {index: sorted(found) for index, found in reported.items()} == errors
        assert list(reported) == sorted(reported)
        assert (answer.status_code, report["stored"], report["duplicates"]) == (status, stored, duplicates)
        assert (report["received"], report["rejected"]) == (len(items), len(errors))
        assert ("Preference-Applied" in answer.headers) == strict
    rows = database.run(
        "SELECT to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US'), metric_type, value,"
        " CASE WHEN session_id::text LIKE '0b7fd3a4%' THEN session_id::text END FROM metrics WHERE user_id = :u",
        u=oracle.user_id,
    )
    instants = {NOON: "2024-08-08T12:00:00.000000", ONE: "2024-08-08T12:00:00.000001"}
    expected = [(instants[instant], *content) for (instant, _), content in oracle.table.items()]
    assert sorted(map(repr, map(tuple, rows))) == sorted(map(repr, expected))
