"""Values in PostgreSQL's binary format arrive as they were meant; the hint about sessions is no more than a hint."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pg8000.core
import pg8000.native
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metrics_ingest import sessions, wire
from metrics_ingest.metrics import Row
from metrics_ingest.sessions import SeenSessions
from metrics_ingest.settings import read_database
from metrics_ingest.store import connect
from processes import Postgres, Stack

EPOCH = datetime(2000, 1, 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@pytest.fixture(scope="module")
def connection(postgres: Postgres) -> Iterator[pg8000.native.Connection]:
    connection = connect(read_database({"DATABASE_URL": postgres.url("postgres")}), 30)
    yield connection
    connection.close()


def ask(connection: pg8000.native.Connection, *statements: bytes) -> list[Any]:
    """Send the statements, with one Sync, and return the rows that come back, each one value as text."""
    context = pg8000.core.Context(None, columns=(), input_funcs=(str,))
    connection._sock.write(b"".join(statements) + wire.SYNC)
    connection._sock.flush()
    connection.handle_messages(context)
    return [row[0] for row in context.rows]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.uuids(), max_size=5),
    instants=st.lists(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), max_size=5),
    numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5),
    flags=st.lists(st.booleans(), max_size=5),
    words=st.lists(TEXT, max_size=5),
)
def test_each_kind_of_array_arrives(
    connection: pg8000.native.Connection,
    ids: list[UUID],
    instants: list[datetime],
    numbers: list[float],
    flags: list[bool],
    words: list[str],
) -> None:
    microseconds = [(instant - EPOCH) // timedelta(microseconds=1) for instant in instants]
    connection.run("SET timezone = 'UTC'")
    (answer,) = ask(connection, wire.statement("SELECT json_build_array($1, $2, $3, $4, $5)", [
        wire.uuids([one.bytes for one in ids]),
        wire.timestamps(microseconds),
        wire.floats(numbers),
        wire.booleans(flags),
        wire.texts(words),
    ]))  # fmt: skip
    got_ids, got_instants, *rest = json.loads(answer)
    assert [UUID(one) for one in got_ids] == ids
    assert [datetime.fromisoformat(one).replace(tzinfo=None) for one in got_instants] == instants
    assert rest == [numbers, flags, words]


def test_statements_of_one_sync_are_one_transaction(connection: pg8000.native.Connection) -> None:
    one = wire.statement("SELECT pg_current_xact_id()::text || $1", [wire.json(b'"x"')])
    with pytest.raises(pg8000.native.DatabaseError):
        ask(connection, one, wire.statement("nonsense"), one)
    first, second = ask(connection, wire.statement("BEGIN"), one, one, wire.statement("COMMIT"))
    assert first == second


def test_seen_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that serves for months does not keep them all; what is forgotten is looked for again."""
    monkeypatch.setattr(sessions, "MOST", 10)
    seen = SeenSessions()
    rows: list[Row] = [(uuid4().bytes, 0, uuid4().bytes, uuid4().bytes, "talked_time", 1.0) for _ in range(100)]
    for row in rows:
        assert seen.unseen([row]) == [True]
        seen.remember([row])
        assert seen.unseen([row]) == []
    assert sum(not seen.unseen([row]) for row in rows) <= 11
    assert seen.unseen([rows[-1], rows[0]]) == [False, True]


def test_session_that_was_seen_and_is_gone_is_made_again(stack: Stack, metric: dict[str, Any]) -> None:
    """As `metrics-ingest user forget` or an operator may remove it under a function that has seen it stored."""
    user = metric["user_id"]
    for _ in range(2):
        assert stack.send({**metric, "metric_id": str(uuid4())}).status_code == 200
    stack.query("DELETE FROM metrics WHERE user_id = :u", u=user)
    stack.query("DELETE FROM sessions WHERE user_id = :u", u=user)
    assert stack.send({**metric, "metric_id": str(uuid4())}).status_code == 200
    assert len(stack.stored(user)) == 1
    assert stack.query("SELECT count(*) FROM sessions WHERE user_id = :u", u=user) == [[1]]


def test_user_who_was_seen_and_is_gone_is_unknown(stack: Stack, metric: dict[str, Any]) -> None:
    user = metric["user_id"]
    assert stack.send(metric).status_code == 200
    for table in ("metrics", "sessions", "users"):
        stack.query(f"DELETE FROM {table} WHERE user_id = :u", u=user)
    answer = stack.send({**metric, "metric_id": str(uuid4())})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_user")
    assert stack.stored(user) == []


def test_rejected_metric_makes_no_session(stack: Stack, metric: dict[str, Any]) -> None:
    stack.query(
        "INSERT INTO metric_types (metric_type, kind, aggregation, retired_at)"
        " VALUES ('retired', 'gauge', 'mean', now()) ON CONFLICT DO NOTHING"
    )
    for change in ({"value": -1}, {"metric_type": "not_registered"}, {"metric_type": "retired"}):
        each = metric | change
        assert stack.send({**each, "session_id": str(uuid4())}).status_code == 422
    assert stack.query("SELECT count(*) FROM sessions WHERE user_id = :u", u=metric["user_id"]) == [[0]]
