"""What rests on pg8000's inside, and what its errors mean."""

import gc
import io
import re
import socket
import threading
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pg8000.dbapi
import pg8000.native
import psutil
import pytest
from pg8000.exceptions import DatabaseError, InterfaceError

from metrics_ingest.errors import ConnectionLost, IngestError, StatementRefused, StoreUnavailable
from metrics_ingest.settings import read_database
from metrics_ingest.storage.driver import DatabaseSocket, connect, connect_dbapi, reason_of, sqlstate, translate
from support.fake_postgres import error
from support.processes import Postgres, free_port, query

ROOT = Path(__file__).parents[2]
LOOK_AT = """pg8000 has changed, or its bound in pyproject.toml. What to look at (pg8000/core.py, CoreConnection):
- `_usock` is the connected socket, TLS included, and `_sock` a buffered file of it, made by makefile("rwb");
- the login ends with ReadyForQuery, and nothing that needs an answer is read ahead of the first exchange;
- DatabaseError has the error's fields, by their one-letter codes, as its only argument;
- pg8000.native.Connection adds `_context` to what CoreConnection has, and pg8000.dbapi.Connection `autocommit`;
- a refused login is in the __context__ of the InterfaceError, when the server has closed the connection.
Then raise the bound, and the version here."""


def test_shape_of_pg8000_is_the_one_that_driver_uses(postgres: Postgres) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    assert "pg8000>=1.31.5,<1.32" in dependencies, LOOK_AT
    assert re.match(r"1\.31\.", version("pg8000")), LOOK_AT
    connection = connect(read_database({"DATABASE_URL": postgres.url()}), 10)
    assert pg8000.dbapi.Connection.__mro__[1:] == pg8000.native.Connection.__mro__[1:], LOOK_AT
    other = connect_dbapi(read_database({"DATABASE_URL": postgres.url()}), 10)
    assert vars(connection).keys() ^ vars(other).keys() == {"_context", "autocommit"}, LOOK_AT
    other.close()
    inside = DatabaseSocket(connection)
    assert isinstance(inside.socket, socket.socket), LOOK_AT
    assert isinstance(inside._file, io.BufferedRWPair), LOOK_AT
    with pytest.raises(DatabaseError) as caught:
        connection.run("SELECT 1 / 0")
    assert caught.value.args[0].items() >= {"C": "22012", "M": "division by zero", "V": "ERROR"}.items(), LOOK_AT
    inside.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        inside.socket.recv(1)
    inside.close()
    assert inside.socket.fileno() == -1, LOOK_AT


def server_error(severity: str, code: str) -> DatabaseError:
    return DatabaseError({"S": severity, "V": severity, "C": code, "M": "in words", "n": "a_constraint"})


TIMED_OUT = InterfaceError("network error")
TIMED_OUT.__cause__ = TimeoutError("timed out")


@pytest.mark.parametrize(
    ("error", "unsent", "sent", "reason"),
    [
        (server_error("FATAL", "57P01"), StoreUnavailable, ConnectionLost, "in words (57P01)"),
        (server_error("FATAL", "XX000"), StoreUnavailable, ConnectionLost, "in words (XX000)"),
        (server_error("ERROR", "08006"), StoreUnavailable, ConnectionLost, "in words (08006)"),
        (server_error("ERROR", "40P01"), StoreUnavailable, StoreUnavailable, "in words (40P01)"),
        (server_error("ERROR", "23514"), StatementRefused, StatementRefused, "23514 a_constraint"),
        (InterfaceError("cut"), StoreUnavailable, ConnectionLost, "InterfaceError: cut"),
        (ConnectionResetError("reset"), StoreUnavailable, ConnectionLost, "ConnectionResetError: reset"),
        (TIMED_OUT, StoreUnavailable, ConnectionLost, "no answer in time"),
        (TimeoutError(), StoreUnavailable, ConnectionLost, "no answer in time"),
    ],
    ids=repr,
)
def test_errors_are_translated_by_what_a_client_can_do(
    error: Exception, unsent: type[IngestError], sent: type[IngestError], reason: str
) -> None:
    for may_be_committed, expected in ((False, unsent), (True, sent)):
        translated = translate(error, may_be_committed=may_be_committed)
        assert (type(translated), translated.reason) == (expected, reason)


def test_sqlstate_is_empty_when_the_server_has_sent_no_error() -> None:
    assert sqlstate(server_error("ERROR", "23514")) == "23514"
    assert sqlstate(InterfaceError("cut")) == sqlstate(OSError()) == sqlstate(DatabaseError()) == ""
    assert reason_of(server_error("ERROR", "22012")) == "in words (22012)"


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Only reference counting frees objects meanwhile."""
    gc.disable()
    yield
    gc.enable()


def test_refused_connection_is_closed_at_once(database_url: str, no_collection: None) -> None:
    database = read_database({"DATABASE_URL": database_url.replace("test_", "no_such_")})
    before = psutil.Process().num_fds()
    for _ in range(3):
        with pytest.raises(DatabaseError, match="3D000"):
            connect(database, 10)
    assert psutil.Process().num_fds() == before


HANDSHAKES = {
    "silent": b"",
    "closed": None,
    "garbage": b"\xff" * 1_000,
    "a byte that is no ASCII": b"\xff",
    "no login": b"R\0\0\0\x08\0\0\0\0",
    "an unknown login": b"R\0\0\0\x08\0\0\0\x63",
    "a short message": b"R\0\0\0\x04",
    "a large message": b"R\x7f\xff\xff\xff",
    "TLS": b"S",
    "refused": b"E\0\0\0\x21SFATAL\0VFATAL\0C53300\0Mfull\0\0",
}


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
@pytest.mark.parametrize("name", HANDSHAKES)
def test_connection_that_dies_in_its_handshake_leaves_nothing_open(
    no_collection: None, name: str, sslmode: str
) -> None:
    said = HANDSHAKES[name]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []

        def serve() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                if said is None:
                    connection.close()
                else:
                    connection.sendall(said)
                    kept.append(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        database = read_database({"DATABASE_URL": f"postgresql://u@127.0.0.1:{port}/d?sslmode={sslmode}"})
        for _ in range(3):
            with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is translated elsewhere
                connect(database, 0.3)
            del caught
        thread.join()
        ours = [each for each in psutil.Process().net_connections() if each.raddr and each.raddr.port == port]
        assert ours == []
        for connection in kept:
            connection.close()


def after(port: int, postgres: Postgres) -> str:
    """The URL of two hosts: a port of 127.0.0.1, and a real server."""
    database = read_database({"DATABASE_URL": postgres.url()})
    places = f"host=127.0.0.1,{database.host}&port={port},{database.port}"
    return f"postgresql://{database.user}@/{database.database}?{places}&sslmode=disable"


def test_next_host_is_tried_when_the_first_does_not_answer(
    postgres: Postgres,
) -> None:
    url = after(free_port(), postgres)
    assert query(url, "SELECT 1") == [[1]]
    connect_dbapi(read_database({"DATABASE_URL": url}), 10).close()


@pytest.mark.parametrize(("state", "goes_on"), [("57P03", True), ("57P01", True), ("53300", True), ("28P01", False)])
def test_next_host_is_tried_unless_the_others_would_refuse_too(postgres: Postgres, state: str, goes_on: bool) -> None:
    refusal = error(state, severity="FATAL")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            with listener.accept()[0] as client:
                client.recv(1000)
                client.sendall(refusal)

        thread = threading.Thread(target=refuse)
        thread.start()
        database = read_database({"DATABASE_URL": after(listener.getsockname()[1], postgres)})
        try:
            if goes_on:
                connect(database, 10).close()
            else:
                with pytest.raises(DatabaseError) as caught:
                    connect(database, 10)
                assert sqlstate(caught.value) == state
        finally:
            thread.join()
