"""One connection to the database: what is dropped is gone, on the server too."""

import asyncio
import gc
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pg8000.native
import pytest

from metrics_ingest.errors import ConnectionLost, StoreUnavailable
from metrics_ingest.settings import read_database
from metrics_ingest.storage import connection as connection_module
from metrics_ingest.storage import operations
from metrics_ingest.storage.connection import Connection
from metrics_ingest.storage.driver import connect
from metrics_ingest.storage.operations import Commit, Operation
from metrics_ingest.storage.seen_sessions import SeenSessions
from support.mortal import Mortal
from support.processes import eventually, query
from support.proxy import Proxy


@pytest.fixture
def proxy(mortal: Mortal) -> Iterator[Proxy]:
    with Proxy(mortal.clone()) as proxy:
        yield proxy


def test_connection_that_was_given_up_is_closed_at_once(mortal: Mortal, proxy: Proxy) -> None:
    """Or its transaction and its locks would stay for as long as the garbage collector likes."""
    database = read_database({"DATABASE_URL": proxy.url})
    others = f"SELECT FROM pg_stat_activity WHERE datname = '{database.database}'"

    async def test() -> None:
        store = Connection(database, SeenSessions())
        loop = asyncio.get_running_loop()
        await store.execute(Operation.PING, (), Commit.ALWAYS, loop.time() + 5)
        assert len(mortal.run(others)) == 1
        proxy.hold()
        with pytest.raises(ConnectionLost):
            await store.execute(Operation.PING, (), Commit.ALWAYS, loop.time() + 0.2)
        with pytest.raises(StoreUnavailable) as caught:
            await store.execute(Operation.PING, (), Commit.ALWAYS, loop.time() + 0.2)
        assert not isinstance(caught.value, ConnectionLost)  # nothing was sent on it
        proxy.release()
        await asyncio.to_thread(eventually, lambda: not mortal.run(others))

    gc.disable()
    try:
        asyncio.run(test())
    finally:
        gc.enable()


def test_connect_that_nobody_waits_for_any_more(mortal: Mortal, proxy: Proxy) -> None:
    """It keeps neither the process, as a thread of asyncio's own pool would, nor a connection when it succeeds."""
    database = read_database({"DATABASE_URL": proxy.url})
    others = f"SELECT FROM pg_stat_activity WHERE datname = '{database.database}'"
    proxy.hold()

    async def test() -> None:
        loop = asyncio.get_running_loop()
        call = asyncio.ensure_future(
            Connection(database, SeenSessions()).execute(Operation.PING, (), Commit.ALWAYS, loop.time() + 60)
        )
        await asyncio.sleep(0.2)
        call.cancel()
        await asyncio.wait_for(loop.shutdown_default_executor(), 1)
        proxy.release()
        await asyncio.sleep(0.5)
        async with asyncio.timeout(5):
            while mortal.run(others):
                await asyncio.sleep(0.05)

    asyncio.run(test())


def test_connection_that_was_idle_for_long_is_not_trusted(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network may have forgotten it, which shows only when an answer fails to come."""
    monkeypatch.setattr(connection_module, "IDLE_S", 0.2)

    async def test() -> None:
        store = Connection(read_database({"DATABASE_URL": proxy.url}), SeenSessions())
        loop = asyncio.get_running_loop()
        await store.execute(Operation.PING, (), Commit.ALWAYS, loop.time() + 5)
        proxy.forget()
        await asyncio.sleep(0.3)
        await store.execute(Operation.PING, (), Commit.ALWAYS, loop.time() + 5)
        store.close()

    asyncio.run(test())


def test_strict_call_that_loses_its_connection_before_the_commit(mortal: Mortal) -> None:
    """The loop may hear of it between the two exchanges: that is a lost connection, not a defect, and nothing stays."""
    url = mortal.clone()
    user, metric_id = uuid4(), uuid4()
    query(url, f"INSERT INTO users (user_id, name) VALUES ('{user}', 'Greg')")

    class Cut(Connection):
        async def _exchange(self, *statements: bytes) -> Any:
            if statements == (operations.COMMIT,):
                self._fail(pg8000.native.InterfaceError("the server closed the connection"))
            return await super()._exchange(*statements)

    async def test() -> None:
        store = Cut(read_database({"DATABASE_URL": url}), SeenSessions())
        row = (user.bytes, 0, metric_id.bytes, metric_id.bytes, "talked_time", 1.0)
        with pytest.raises(StoreUnavailable):
            await store.execute(
                Operation.STORE_METRICS, [row], Commit.ALL_STORED, asyncio.get_running_loop().time() + 5
            )

    asyncio.run(test())
    assert query(url, "SELECT count(*) FROM metrics") == [[0]]


def test_answer_that_is_no_message_ends_the_call_at_once(mortal: Mortal) -> None:
    """Not when its time is up: what is raised in the loop's own callbacks reaches nobody by itself."""
    database = read_database({"DATABASE_URL": mortal.clone()})

    async def test() -> None:
        store = Connection(database, SeenSessions())
        loop = asyncio.get_running_loop()
        await store.execute(Operation.PING, (), Commit.ALWAYS, loop.time() + 5)
        assert store._connection is not None
        store._connection.message_types.clear()  # as if the server spoke of things that nobody knows
        with pytest.raises(KeyError):
            await asyncio.wait_for(store.execute(Operation.PING, (), Commit.ALWAYS, loop.time() + 60), 5)
        await store.execute(Operation.PING, (), Commit.ALWAYS, loop.time() + 5)  # on a new connection
        store.close()

    asyncio.run(test())


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
