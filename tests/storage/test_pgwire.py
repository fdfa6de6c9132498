"""Values in PostgreSQL's binary format arrive as they were meant."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pg8000.native
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pg8000.exceptions import DatabaseError

from metrics_ingest.settings import read_database
from metrics_ingest.storage import pgwire as wire
from metrics_ingest.storage.driver import DatabaseSocket, connect
from support.fake_postgres import DONE, PARSED, READY, error, message, row
from support.processes import Postgres

EPOCH = datetime(2000, 1, 1)
ARRAYS = "$1::uuid[], $2::timestamptz[], $3::float8[], $4::bool[], $5::text[]"
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@pytest.fixture(scope="module")
def connection(postgres: Postgres) -> Iterator[pg8000.native.Connection]:
    connection = connect(read_database({"DATABASE_URL": postgres.url("postgres")}), 30)
    yield connection
    connection.close()


def ask(connection: pg8000.native.Connection, *statements: wire.Statement) -> list[Any]:
    """Send the statements, with one Sync, and return their values."""
    return DatabaseSocket(connection).exchange(list(statements), wire.IDLE)


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
    (answer,) = ask(connection, wire.one_row(f"SELECT json_build_array({ARRAYS})", [
        wire.uuids([one.bytes for one in ids]),
        wire.timestamps(microseconds),
        wire.floats(numbers),
        wire.booleans(flags),
        wire.texts(words),
    ]))  # fmt: skip
    got_ids, got_instants, *rest = answer
    assert [UUID(one) for one in got_ids] == ids
    assert [datetime.fromisoformat(one).replace(tzinfo=None) for one in got_instants] == instants
    assert rest == [numbers, flags, words]


def test_statements_of_one_sync_are_one_transaction(connection: pg8000.native.Connection) -> None:
    one = wire.one_row("SELECT json_build_array(pg_current_xact_id()::text, $1::json)", [b'"x"'])
    with pytest.raises(pg8000.native.DatabaseError):
        ask(connection, one, wire.no_rows("nonsense"), one)
    first, second = ask(connection, wire.no_rows("BEGIN"), one, one, wire.no_rows("COMMIT"))
    assert first == second
    assert first[1] == "x"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_answer_may_arrive_in_pieces_of_any_size(size: int) -> None:
    received = PARSED + message(b"N", b"SNOTICE\0\0") + row(b'{"a": 1}') + DONE + PARSED + row(None) + DONE + READY
    answer = wire.Answer([wire.one_row("SELECT 1"), wire.one_row("SELECT 2")], wire.IDLE)
    pieces = [received[at : at + size] for at in range(0, len(received), size)]
    assert [answer.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert answer.values() == [{"a": 1}, None]
    assert not answer.unread


def test_error_ends_the_other_statements() -> None:
    answer = wire.Answer([wire.no_rows("BEGIN"), wire.one_row("SELECT 1")], wire.IN_TRANSACTION)
    assert answer.feed(PARSED + DONE + PARSED + error("23514") + message(b"Z", b"E"))
    with pytest.raises(DatabaseError) as caught:
        answer.values()
    assert caught.value.args[0] == {"S": "FEHLER", "V": "ERROR", "C": "23514", "M": "says the test"}
