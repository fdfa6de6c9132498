"""A lane: one of the process's database connections for writing, driven by the event loop.

Each call is one round trip. It uses a named statement, and none as soon as a transaction pooler has lost it or mixed
it up: so any pooler will do.
"""

import asyncio
import ssl
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from socket import socket
from typing import Any

from pg8000.exceptions import DatabaseError, Error, InterfaceError

from metrics_ingest.errors import StatementRefused, StoreUnavailable
from metrics_ingest.settings import Database
from metrics_ingest.storage import operations, pgwire
from metrics_ingest.storage.driver import RECEIVE_BYTES, DatabaseSocket, connect, reason_of, sqlstate, translate
from metrics_ingest.storage.operations import BEGIN, COMMIT, ROLLBACK, STORES, Commit, Operation, Outcome
from metrics_ingest.storage.pgwire import IDLE, IN_TRANSACTION, Statement
from metrics_ingest.storage.seen_sessions import SeenSessions

MAX_IDLE_S = 60.0  # firewalls and NATs drop idle connections without notice, some after four minutes
CONNECT_TIMEOUT_S = 5.0  # shorter than a request's time, so that a lost first packet leaves time for a second attempt
NOTHING = memoryview(b"")
NAME_MISUSED = ("26000", "42P05")  # SQLSTATEs: the server has no statement of this name; it has one already
# Only `migrate` on Citus makes this function (migrations/functions/citus/).
IS_DISTRIBUTED = pgwire.one_row("SELECT to_json(to_regproc('public.locate_users') IS NOT NULL)", [])


class Lane:
    """One connection: opened when first needed, dropped when it fails, one call at a time.

    The event loop sends and receives, because a thread for each connection would compete with it for the interpreter
    lock, which costs more than the transaction (docs/benchmarks.md).
    """

    def __init__(self, database: Database, seen: SeenSessions) -> None:
        """`seen` is shared by all lanes of the process."""
        self._database = database
        self._seen = seen
        self._loop = asyncio.get_running_loop()
        self._socket: DatabaseSocket | None = None
        self._last_used = 0.0  # in the loop's time
        # The names of the statements that this connection has; None behind a pooler that does not keep them apart.
        self._named: set[bytes] | None = set()
        self.distributed = False  # whether the database that it was last connected to is on Citus
        # The exchange in progress:
        self._answer: pgwire.Answer | None = None
        self._answered: asyncio.Future[None] | None = None
        self._unsent = NOTHING

    async def execute(self, operation: Operation, items: Sequence[Any], commit: Commit, until: float) -> list[Outcome]:
        """Do `operation` in one transaction, and return its outcomes. `until` is a deadline in the loop's time.

        Raise StoreUnavailable (ConnectionLost if the transaction may be committed) or StatementRefused.
        """
        unseen = self._seen.unseen(items) if operation in STORES else ()
        may_be_committed = False
        try:
            await self._ensure_connection(until)
            if commit is Commit.VALID_ITEMS:
                may_be_committed = True
                outcomes = operations.outcomes(await self._call(operation, items, unseen, until), items)
            else:
                statement = operations.statement(operation, items, unseen)
                values = await self._exchange([BEGIN, statement], IN_TRANSACTION, until)
                outcomes = operations.outcomes(values, items)
                all_valid = all(outcome.kind == "duplicate" for outcome in outcomes)
                may_be_committed = all_valid and commit is Commit.ALL_OR_NOTHING
                await self._exchange([COMMIT if may_be_committed else ROLLBACK], IDLE, until)
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

    async def _call(
        self, operation: Operation, items: Sequence[Any], unseen: Sequence[bool], until: float
    ) -> list[Any]:
        """Run the operation's statement; return its value. By name it is parsed once, which saves 30 µs a call."""
        if self._named is not None and operation in STORES:
            name = operations.name(operation)
            statement = operations.statement(operation, items, unseen, name, parse=name not in self._named)
            self._named.add(name)
            try:
                return await self._exchange([statement], IDLE, until)
            except DatabaseError as error:
                if sqlstate(error) not in NAME_MISUSED:
                    raise
                self._named = None
        return await self._exchange([operations.statement(operation, items, unseen)], IDLE, until)

    def close(self) -> None:
        """Drop the connection, if there is one, without waiting for anything."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket.socket)
            self._loop.remove_writer(self._socket.socket)
            self._socket.close()
            self._socket = None
            if self._named:
                self._named.clear()

    async def _ensure_connection(self, deadline: float) -> None:
        """Make sure that there is a connection. Raise StoreUnavailable."""
        now = self._loop.time()
        if self._socket is None or now - self._last_used > MAX_IDLE_S:
            self.close()
            try:
                self._socket, self.distributed = await _open(self._database, deadline - now)
            except Exception as error:
                raise StoreUnavailable(reason_of(error)) from error
            self._loop.add_reader(self._socket.socket, self._receive, self._socket.socket)
        self._last_used = now

    async def _exchange(self, statements: list[Statement], status: bytes, deadline: float) -> list[Any]:
        """Send the statements, return their values; `status` as in pgwire.Answer. Raise pg8000's errors and OSError."""
        if self._socket is None:
            raise InterfaceError("the connection was lost between two exchanges")
        answer = self._answer = pgwire.Answer(statements, status)
        self._answered = self._loop.create_future()
        self._unsent = memoryview(pgwire.request(statements))
        timer = self._loop.call_at(deadline, self._fail, TimeoutError())
        self._send(self._socket.socket)
        try:
            await self._answered
        finally:
            timer.cancel()
            self._answer = self._answered = None
        return answer.values()

    def _send(self, target: socket) -> None:
        """Send what the socket takes, and let the loop call again when it takes more."""
        try:
            self._unsent = self._unsent[target.send(self._unsent) :] or NOTHING
        except (BlockingIOError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._fail(error)
            return
        if self._unsent:
            self._loop.add_writer(target, self._send, target)
        else:
            self._loop.remove_writer(target)

    def _receive(self, source: socket) -> None:
        """Read until the answer is complete or the socket would block.

        Reading once is not enough, because uvloop never calls again when data and a reset arrive together, and because
        the loop does not see what TLS has buffered. An idle connection is closed, since what arrives is mostly its end.
        """
        try:
            while True:
                received = source.recv(RECEIVE_BYTES)
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


async def _open(database: Database, timeout_s: float) -> tuple[DatabaseSocket, bool]:
    """Open a connection; return it, and whether it is to Citus. Raise any error of `connect`, or TimeoutError."""
    opened: Future[tuple[DatabaseSocket, bool]] = Future()
    opened.set_running_or_notify_cancel()  # so that it cannot be cancelled

    def work() -> None:
        try:
            connection = connect(database, min(timeout_s, CONNECT_TIMEOUT_S))
            server = DatabaseSocket(connection)
            try:
                (distributed,) = server.exchange([IS_DISTRIBUTED], IDLE)
                server.socket.setblocking(False)
            except BaseException:
                server.close()
                raise
            opened.set_result((server, distributed))
        except Exception as error:  # noqa: BLE001  # raised where it is awaited
            opened.set_exception(error)

    def discard(_: object) -> None:
        if not opened.exception():
            opened.result()[0].close()

    # In a thread of its own, because pg8000 blocks, and asyncio's threads would delay the exit.
    threading.Thread(target=work, name="connect", daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(opened)
    except BaseException:  # nobody waits for the connection any more
        opened.add_done_callback(discard)
        raise
