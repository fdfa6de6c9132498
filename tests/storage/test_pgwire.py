"""Values in PostgreSQL's binary format arrive as they were meant."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pg8000.core
import pg8000.native
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metrics_ingest.settings import read_database
from metrics_ingest.storage import pgwire as wire
from metrics_ingest.storage.driver import connect
from support.processes import Postgres

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
