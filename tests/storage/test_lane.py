"""One connection to the database: which answers it accepts, when it is given up, and that it is closed then."""

import asyncio
import gc
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from select import select
from typing import Any
from uuid import UUID, uuid4

import pg8000.native
import pytest
import uvloop
from pg8000.exceptions import InterfaceError

from metrics_ingest import shutdown
from metrics_ingest.errors import ConnectionLost, StatementRefused, StoreUnavailable
from metrics_ingest.settings import read_database
from metrics_ingest.storage import lane as lane_module
from metrics_ingest.storage import operations
from metrics_ingest.storage.driver import connect
from metrics_ingest.storage.lane import Lane
from metrics_ingest.storage.operations import Commit, Operation, Outcome
from metrics_ingest.storage.pgwire import Statement
from metrics_ingest.storage.seen_sessions import SeenSessions
from metrics_ingest.storage.writer import Writer
from support.fake_postgres import DONE, PARSED, READY, FakePostgres, error, message, row
from support.processes import Postgres, eventually, query
from support.proxy import Proxy

WRITE_TIMEOUT_S = 4.0
METRIC = (bytes(16), 0, bytes(16), bytes(16), "talked_time", 1.0)


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    with Proxy(postgres.clone()) as proxy:
        yield proxy


def test_connection_that_was_given_up_is_closed_at_once(postgres: Postgres, proxy: Proxy) -> None:
    """Or its transaction and its locks would stay for as long as the garbage collector likes."""
    database = read_database({"DATABASE_URL": proxy.url})
    others = f"SELECT FROM pg_stat_activity WHERE datname = '{database.database}'"

    async def test() -> None:
        lane = Lane(database, SeenSessions())
        loop = asyncio.get_running_loop()
        await lane.execute(Operation.PING, (), Commit.VALID_ITEMS, loop.time() + 5)
        assert len(postgres.run(others)) == 1
        proxy.hold()
        with pytest.raises(ConnectionLost):
            await lane.execute(Operation.PING, (), Commit.VALID_ITEMS, loop.time() + 0.2)
        with pytest.raises(StoreUnavailable) as caught:
            await lane.execute(Operation.PING, (), Commit.VALID_ITEMS, loop.time() + 0.2)
        assert not isinstance(caught.value, ConnectionLost)  # nothing was sent on it
        proxy.release()
        await asyncio.to_thread(eventually, lambda: not postgres.run(others))

    gc.disable()
    try:
        asyncio.run(test())
    finally:
        gc.enable()


def test_idle_connections_are_given_up_with_one_that_is_lost(postgres: Postgres, proxy: Proxy) -> None:
    """Or each of them would fail requests in its turn, after a failover or when the network has forgotten them."""
    database = read_database({"DATABASE_URL": proxy.url})
    others = f"SELECT FROM pg_stat_activity WHERE datname = '{database.database}'"

    async def test() -> None:
        lanes = [Lane(database, SeenSessions()) for _ in range(2)]
        loop = asyncio.get_running_loop()
        for lane in lanes:
            await lane.execute(Operation.PING, (), Commit.VALID_ITEMS, loop.time() + 5)
        assert len(postgres.run(others)) == 2
        proxy.hold()
        with pytest.raises(StoreUnavailable):
            await Writer(lanes, 100, 0.3).write(Operation.PING, ())
        proxy.release()
        await asyncio.to_thread(eventually, lambda: not postgres.run(others))

    shutdown.shutdown_deadline.cache_clear()
    asyncio.run(test())


def test_connect_that_nobody_waits_for_any_more(postgres: Postgres, proxy: Proxy) -> None:
    """It keeps neither the process, as a thread of asyncio's own pool would, nor a connection when it succeeds."""
    database = read_database({"DATABASE_URL": proxy.url})
    others = f"SELECT FROM pg_stat_activity WHERE datname = '{database.database}'"
    proxy.hold()

    async def test() -> None:
        loop = asyncio.get_running_loop()
        call = asyncio.ensure_future(
            Lane(database, SeenSessions()).execute(Operation.PING, (), Commit.VALID_ITEMS, loop.time() + 60)
        )
        await asyncio.sleep(0.2)
        call.cancel()
        await asyncio.wait_for(loop.shutdown_default_executor(), 1)
        proxy.release()
        await asyncio.sleep(0.5)
        async with asyncio.timeout(5):
            while postgres.run(others):
                await asyncio.sleep(0.05)

    asyncio.run(test())


def test_connection_that_was_idle_for_long_is_not_trusted(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network may have forgotten it, which shows only when an answer fails to come."""
    monkeypatch.setattr(lane_module, "MAX_IDLE_S", 0.2)

    async def test() -> None:
        lane = Lane(read_database({"DATABASE_URL": proxy.url}), SeenSessions())
        loop = asyncio.get_running_loop()
        await lane.execute(Operation.PING, (), Commit.VALID_ITEMS, loop.time() + 5)
        proxy.forget()
        await asyncio.sleep(0.3)
        await lane.execute(Operation.PING, (), Commit.VALID_ITEMS, loop.time() + 5)
        lane.close()

    asyncio.run(test())


def test_strict_call_that_loses_its_connection_before_the_commit(postgres: Postgres) -> None:
    """The loop may hear of it between the two exchanges: that is a lost connection, not a defect, and nothing stays."""
    url = postgres.clone()
    user, metric_id = uuid4(), uuid4()
    query(url, f"INSERT INTO users (user_id, name) VALUES ('{user}', 'Greg')")

    class Cut(Lane):
        async def _exchange(self, statements: list[Statement], status: bytes, deadline: float) -> list[Any]:
            if statements == [operations.COMMIT]:
                self._fail(InterfaceError("the server closed the connection"))
            return await super()._exchange(statements, status, deadline)

    async def test() -> None:
        lane = Cut(read_database({"DATABASE_URL": url}), SeenSessions())
        row = (user.bytes, 0, metric_id.bytes, metric_id.bytes, "talked_time", 1.0)
        with pytest.raises(StoreUnavailable):
            await lane.execute(
                Operation.STORE_METRICS, [row], Commit.ALL_OR_NOTHING, asyncio.get_running_loop().time() + 5
            )

    asyncio.run(test())
    assert query(url, "SELECT count(*) FROM metrics") == [[0]]


@contextmanager
def resetting(url: str) -> Iterator[str]:
    """The URL of a proxy that answers every other statement with a part of a message and a reset."""
    database = read_database({"DATABASE_URL": url})
    numbers = count(1)

    def serve(client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(f"{database.host}/.s.PGSQL.{database.port}")
            while True:
                for source in select([client, server], [], [])[0]:
                    if not (data := source.recv(65_536)):
                        return
                    if data.startswith(b"P") and b"public.locate_users" not in data and next(numbers) % 2:
                        client.sendall(b"N\0\0\1\0SERROR")
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return
                    (server if source is client else client).sendall(data)

    def accept() -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                threading.Thread(target=serve, args=listener.accept()[:1]).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept).start()
        port = listener.getsockname()[1]
        yield f"postgresql://postgres@127.0.0.1:{port}/{database.database}?sslmode=disable"
        listener.shutdown(socket.SHUT_RDWR)


LoopFactory = Callable[[], asyncio.AbstractEventLoop]
on_each_loop = pytest.mark.parametrize("loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop])


@on_each_loop
def test_part_of_an_answer_and_a_reset_are_noticed_at_once(postgres: Postgres, loop_factory: LoopFactory) -> None:
    """Uvloop calls a reader once, and never again, when data and a reset arrive together."""

    async def test() -> None:
        lane = Lane(read_database({"DATABASE_URL": url}), SeenSessions())
        writer = Writer([lane], 100, WRITE_TIMEOUT_S)
        for _ in range(50):
            async with asyncio.timeout(WRITE_TIMEOUT_S / 4):
                await writer.write(Operation.PING, ())
        lane.close()

    shutdown.shutdown_deadline.cache_clear()
    with resetting(postgres.url()) as url, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(test())


OUTCOME = b'[{"position": 1, "outcome": "duplicate"}]'
WRONG = {
    "nothing": READY,
    "no row": DONE + READY,
    "no completion": row(None) + READY,
    "a suspended portal": row(None) + message(b"s") + READY,
    "two rows": row(None) + row(None) + DONE + READY,
    "two columns": message(b"D", b"\0\2" + 2 * b"\xff\xff\xff\xff") + DONE + READY,
    "a row that is cut": message(b"D", b"\0\1\0\0\0\5null") + DONE + READY,
    "a row that is not JSON": row(b"{") + DONE + READY,
    "a row of another kind": row(b'{"stored": 1}') + DONE + READY,
    "a position that was not sent": row(OUTCOME.replace(b"1", b"2")) + DONE + READY,
    "an unknown message": row(None) + message(b"?") + DONE + READY,
    "an open transaction": row(None) + DONE + message(b"Z", b"T"),
    "a failed transaction": row(None) + DONE + message(b"Z", b"E"),
    "no transaction status": row(None) + DONE + message(b"Z"),
    "an error in another state": error("23514") + message(b"Z", b"T"),
    "an end": error("57P01", severity="FATAL"),
    "an end of an unknown kind": error("XX000", severity="FATAL"),
    "an error and no end": error("23514") + DONE,
    "a length of two gigabytes": b"D\x7f\xff\xff\xff",
    "a length of nothing": b"D\0\0\0\0",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}
NOTIFICATION = message(b"A", b"\0\0\0\1channel\0" + "Grüße".encode() + b"\0")
NOTICE = message(b"N", b"SNOTICE\0VNOTICE\0\0")
RIGHT = {
    "at once": row(None) + DONE + READY,
    "among others": NOTIFICATION + NOTICE + row(None) + message(b"S", b"TimeZone\0UTC\0") + DONE + READY,
    "before others": row(None) + DONE + READY + NOTICE,
}


@on_each_loop
@pytest.mark.parametrize("answer", [*WRONG.values(), *RIGHT.values()], ids=[*WRONG, *RIGHT])
def test_only_a_complete_and_expected_answer_is_accepted(answer: bytes, loop_factory: LoopFactory) -> None:
    """Anything else is a lost connection: noticed at once, and what comes next goes over a new one."""

    async def test() -> None:
        lane = Lane(read_database({"DATABASE_URL": fake.url}), SeenSessions())
        loop = asyncio.get_running_loop()

        async def store() -> list[Outcome]:
            return await lane.execute(Operation.STORE_METRICS, [METRIC], Commit.VALID_ITEMS, loop.time() + 60)

        async with asyncio.timeout(5):
            if answer in RIGHT.values():
                assert await store() == []
            else:
                with pytest.raises(ConnectionLost):
                    await store()
            assert [outcome.kind for outcome in await store()] == ["duplicate"]
        lane.close()

    fake = FakePostgres([PARSED + answer, PARSED + row(OUTCOME) + DONE + READY])
    with fake, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(test())
    assert fake.connections == (1 if answer in (RIGHT["at once"], RIGHT["among others"]) else 2)


def test_refused_statement_keeps_the_connection() -> None:
    """Finding the one request at fault takes twenty statements, which should not take twenty connections."""

    async def test() -> None:
        lane = Lane(read_database({"DATABASE_URL": fake.url}), SeenSessions())
        loop = asyncio.get_running_loop()
        with pytest.raises(StatementRefused) as caught:
            await lane.execute(Operation.PING, (), Commit.VALID_ITEMS, loop.time() + 5)
        assert caught.value.reason == "23514 metrics_check"
        await lane.execute(Operation.PING, (), Commit.VALID_ITEMS, loop.time() + 5)
        lane.close()

    refusal = error("23514", n="metrics_check", D="Failing row contains (secret).") + READY
    fake = FakePostgres([refusal, PARSED + row(None) + DONE + READY])
    with fake:
        asyncio.run(test())
    assert fake.connections == 1


async def store_twice_three_times(lane: Lane) -> None:
    """On two connections."""
    for _ in range(2):
        for _ in range(3):
            until = asyncio.get_running_loop().time() + 5
            assert await lane.execute(Operation.STORE_METRICS, [METRIC], Commit.VALID_ITEMS, until) == []
        lane.close()


def test_statement_is_parsed_once_a_connection() -> None:
    async def test() -> None:
        lane = Lane(read_database({"DATABASE_URL": fake.url}), SeenSessions())
        await store_twice_three_times(lane)

    with FakePostgres([PARSED + row(None) + DONE + READY]) as fake:
        asyncio.run(test())
    assert [request[:1] for request in fake.requests] == [b"P", b"B", b"B"] * 2


@pytest.mark.parametrize("state", ["26000", "42P05"], ids=["it is not there", "it is there already"])
def test_statement_has_no_name_once_a_pooler_has_mixed_names_up(state: str) -> None:
    """The request at hand succeeds at once; afterwards no name is used, on new connections either."""
    refused = b"B" if state == "26000" else b"P"

    async def test() -> None:
        lane = Lane(read_database({"DATABASE_URL": fake.url}), SeenSessions())
        await store_twice_three_times(lane)

    def reply(request: bytes) -> bytes:
        named = b"metrics-ingest" in request
        return error(state) + READY if named and request[:1] == refused else PARSED + row(None) + DONE + READY

    with FakePostgres(reply) as fake:
        asyncio.run(test())
    named = [b"metrics-ingest" in request for request in fake.requests]
    assert named == ([True, True] if state == "26000" else [True]) + [False] * (5 if state == "26000" else 6)


def test_named_statement_survives_the_replacement_of_its_function(postgres: Postgres) -> None:
    """Also by one that was dropped first, as the rollback of a migration and a restore do."""
    url = postgres.clone()
    signature = "store_metrics(uuid[], timestamptz[], uuid[], uuid[], text[], float8[], boolean[])"
    ((definition,),) = query(url, f"SELECT pg_get_functiondef(CAST('{signature}' AS regprocedure))")
    query(url, f"INSERT INTO users (user_id, name) VALUES ('{UUID(int=0)}', 'Greg')")

    async def test() -> None:
        lane = Lane(read_database({"DATABASE_URL": url}), SeenSessions())
        for number in range(3):
            row = (*METRIC[:2], number.to_bytes(16), *METRIC[3:])
            until = asyncio.get_running_loop().time() + 5
            assert await lane.execute(Operation.STORE_METRICS, [row], Commit.VALID_ITEMS, until) == []
            query(url, f"DROP FUNCTION {signature}; {definition}")
        lane.close()

    asyncio.run(test())
    assert query(url, "SELECT count(*) FROM metrics") == [[3]]


def test_server_that_hangs_up_is_heard_to_the_end() -> None:
    """Why it does not let anyone in is what its operator must know, not that a goodbye could not be sent."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/.s.PGSQL.5432")
        listener.listen()

        def refuse() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1000)
                connection.shutdown(socket.SHUT_RD)
                fields = b"SFATAL\0C53300\0Msorry, too many clients already\0\0"
                connection.sendall(b"E" + (len(fields) + 4).to_bytes(4) + fields)

        server = threading.Thread(target=refuse)
        server.start()
        with pytest.raises(pg8000.native.DatabaseError, match="too many clients"):
            connect(read_database({"DATABASE_URL": f"postgresql://nobody@/none?host={directory}"}), 5)
        server.join()
