"""A lane: one of the process's database connections for writing, driven by the event loop.

Each call is one round trip and relies on nothing of the session, so any transaction pooler will do.
"""

import asyncio
import ssl
import threading
from collections.abc import Sequence
from typing import Any

from pg8000.exceptions import Error, InterfaceError

from metrics_ingest.errors import StatementRefused, StoreUnavailable
from metrics_ingest.settings import Database
from metrics_ingest.storage import operations, pgwire
from metrics_ingest.storage.driver import RECEIVE_BYTES, DatabaseSocket, connect, reason_of, translate
from metrics_ingest.storage.operations import BEGIN, COMMIT, ROLLBACK, Commit, Operation, Outcome
from metrics_ingest.storage.pgwire import IDLE, IN_TRANSACTION, Statement
from metrics_ingest.storage.seen_sessions import SeenSessions

MAX_IDLE_S = 60.0  # firewalls and NATs drop idle connections without notice, some after four minutes
CONNECT_TIMEOUT_S = 5.0  # shorter than a request's time, so that a lost first packet leaves time for a second attempt
NOTHING = memoryview(b"")


class Lane:
    """One connection: opened when first needed, dropped when it fails, one call at a time.

    pg8000 opens it in a thread; afterwards the event loop sends and receives. A thread for each connection would
    compete with the loop for the interpreter lock, which costs more than the transaction (docs/benchmarks.md).
    """

    def __init__(self, database: Database, seen: SeenSessions) -> None:
        """`seen` is shared by all lanes of the process."""
        self._database = database
        self._seen = seen
        self._loop = asyncio.get_running_loop()
        self._socket: DatabaseSocket | None = None
        self._last_used = 0.0  # in the loop's time
        # The exchange in progress:
        self._answer: pgwire.Answer | None = None
        self._answered: asyncio.Future[None] | None = None
        self._unsent = NOTHING
        self._waits_to_send = False

    async def execute(
        self, operation: Operation, items: Sequence[Any], commit: Commit, deadline: float
    ) -> list[Outcome]:
        """Do `operation` with the items in one transaction; return the outcomes of those that were not simply stored.

        `deadline` is in the event loop's time. Raise StoreUnavailable (ConnectionLost if the transaction may be
        committed) or StatementRefused.
        """
        unseen = self._seen.unseen(items) if operation is Operation.STORE_METRICS else ()
        statement = operations.statement(operation, items, unseen)
        may_be_committed = False
        try:
            await self._connect(deadline)
            if commit is Commit.VALID_ITEMS:
                may_be_committed = True
                outcomes = operations.outcomes(await self._exchange([statement], IDLE, deadline), items)
            else:
                values = await self._exchange([BEGIN, statement], IN_TRANSACTION, deadline)
                outcomes = operations.outcomes(values, items)
                all_valid = all(outcome.kind == "duplicate" for outcome in outcomes)
                may_be_committed = all_valid and commit is Commit.ALL_OR_NOTHING
                await self._exchange([COMMIT if may_be_committed else ROLLBACK], IDLE, deadline)
        except (Error, OSError) as error:
            translated = translate(error, may_be_committed=may_be_committed)
            if not (isinstance(translated, StatementRefused) and commit is Commit.VALID_ITEMS):
                self.close()  # a new connection has no transaction open and may reach another server
            raise translated from error
        except BaseException:
            self.close()
            raise
        if unseen and not outcomes and commit is not Commit.DRY_RUN:
            self._seen.remember(items)
        return outcomes

    def close(self) -> None:
        """Drop the connection, if there is one, without waiting for anything."""
        connection, self._socket = self._socket, None
        if connection is not None:
            self._loop.remove_reader(connection.socket)
            self._loop.remove_writer(connection.socket)
            self._waits_to_send = False
            connection.close()

    async def _connect(self, deadline: float) -> None:
        """Make sure that there is a connection. Raise StoreUnavailable."""
        now = self._loop.time()
        if self._socket is None or now - self._last_used > MAX_IDLE_S:
            self.close()
            try:
                self._socket = await _open(self._database, deadline - now)
            except Exception as error:
                raise StoreUnavailable(reason_of(error)) from error
            self._loop.add_reader(self._socket.socket, self._receive)
        self._last_used = now

    async def _exchange(self, statements: list[Statement], status: bytes, deadline: float) -> list[Any]:
        """Send the statements, return their values; `status` as in pgwire.Answer. Raise pg8000's errors and OSError."""
        if self._socket is None:
            raise InterfaceError("the connection was lost between two exchanges")
        answer = self._answer = pgwire.Answer(statements, status)
        self._answered = self._loop.create_future()
        self._unsent = memoryview(pgwire.request(statements))
        timer = self._loop.call_at(deadline, self._fail, TimeoutError())
        self._send()
        try:
            await self._answered
        finally:
            timer.cancel()
            self._answer = self._answered = None
        return answer.values()

    def _send(self) -> None:
        """Send what the socket takes, and let the loop call again when it takes more."""
        assert self._socket is not None
        try:
            self._unsent = self._unsent[self._socket.socket.send(self._unsent) :] or NOTHING
        except (BlockingIOError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._fail(error)
            return
        if bool(self._unsent) != self._waits_to_send:
            self._waits_to_send = not self._waits_to_send
            if self._waits_to_send:
                self._loop.add_writer(self._socket.socket, self._send)
            else:
                self._loop.remove_writer(self._socket.socket)

    def _receive(self) -> None:
        """Read until the answer is complete or the socket would block.

        Reading once is not enough, because uvloop never calls again when data and a reset arrive together, and because
        the loop does not see what TLS has buffered. An idle connection is closed, since what arrives is mostly its end.
        """
        assert self._socket is not None
        try:
            while True:
                received = self._socket.socket.recv(RECEIVE_BYTES)
                if self._answer is None:
                    raise InterfaceError("the server sent something on an idle connection, or closed it")
                if not received:
                    raise InterfaceError("the server closed the connection") from self._answer.error
                if self._answer.feed(received):
                    break
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except Exception as error:  # noqa: BLE001  # the loop would only log it, and the request wait until its deadline
            self._fail(error)
            return
        assert self._answered is not None
        if not self._answered.done():
            self._answered.set_result(None)
        if self._answer.unread:  # as on an idle connection
            self.close()
        self._answer = None

    def _fail(self, error: Exception) -> None:
        """Drop the connection, and fail the exchange in progress, if there is one."""
        self.close()
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)


async def _open(database: Database, timeout_s: float) -> DatabaseSocket:
    """Open a connection in a thread of its own, because pg8000 blocks, and asyncio's threads would delay the exit.

    Raise any error of `connect`, or TimeoutError.
    """
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[DatabaseSocket] = loop.create_future()

    def settle(connection: DatabaseSocket | None, error: Exception | None) -> None:
        if opened.done():  # nobody waits for it any more
            if connection is not None:
                connection.close()
        elif connection is not None:
            opened.set_result(connection)
        else:
            opened.set_exception(error or OSError())

    def work() -> None:
        connection = failure = None
        try:
            connection = DatabaseSocket(connect(database, min(timeout_s, CONNECT_TIMEOUT_S)))
            connection.socket.setblocking(False)
        except Exception as error:  # noqa: BLE001  # raised where it is awaited
            failure = error
        try:
            loop.call_soon_threadsafe(settle, connection, failure)
        except RuntimeError:  # the loop has ended meanwhile
            if connection is not None:
                connection.close()

    threading.Thread(target=work, name="connect", daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await opened


def execute_blocking(connection: Any, operation: Operation, items: Sequence[Any]) -> list[Outcome]:
    """Do as Lane.execute on a connection of driver.connect, in its transaction. Raise pg8000's errors and OSError."""
    statement = operations.statement(operation, items, [True] * len(items))
    return operations.outcomes(DatabaseSocket(connection).exchange([statement], IDLE + IN_TRANSACTION), items)
