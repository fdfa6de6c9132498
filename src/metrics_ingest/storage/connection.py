"""The database half of the write path: one pg8000 connection and the functions that may be called through it.

Every call is one round trip, so any pooler will do; nothing of a session is relied on.
"""

import asyncio
import ssl
import struct
import threading
from collections.abc import Sequence
from typing import Any

import pg8000.core
import pg8000.native
from pydantic_core import from_json

from metrics_ingest.errors import ConnectionLost, StatementRefused, StoreUnavailable
from metrics_ingest.settings import Database
from metrics_ingest.storage import pgwire
from metrics_ingest.storage.driver import cause_of, close_socket, connect, reason_of, translated
from metrics_ingest.storage.operations import BEGIN, COMMIT, ROLLBACK, Commit, Operation, Outcome, outcomes_of, request
from metrics_ingest.storage.seen_sessions import SeenSessions

IDLE_S = 60.0  # firewalls and NATs forget idle connections, some after four minutes, and tell nobody
RECEIVE_BYTES = 65_536
NOTHING = memoryview(b"")
CONNECT_TIMEOUT_S = 5.0  # a first packet that was lost must not cost the whole time that a request has


class Connection:
    """One connection, made when first needed and dropped when it fails. One call at a time.

    The bytes travel by the event loop and pg8000 reads the messages: a thread for each connection would have to fight
    the loop for the interpreter lock, which costs more than the whole transaction (docs/benchmarks.md). `seen` is the
    process's.
    """

    def __init__(self, database: Database, seen: SeenSessions) -> None:
        self._database = database
        self._seen = seen
        self._connection: pg8000.native.Connection | None = None
        self._loop = asyncio.get_running_loop()
        self._used = 0.0  # when it was last known to be alive
        # Of the exchange under way:
        self._answer: asyncio.Future[Any] | None = None
        self._context = _context()
        self._received = bytearray()
        self._unsent = NOTHING
        self._waits_to_send = False

    async def execute(self, operation: Operation, items: Sequence[Any], commit: Commit, until: float) -> list[Outcome]:
        """Do `operation` with the items, in one transaction, and return the outcomes worth telling, by position.

        `until` is a time of the event loop. Raise StoreUnavailable (ConnectionLost when the fate of the transaction is
        unknown) or StatementRefused.
        """
        unseen = self._seen.unseen(items) if operation is Operation.STORE_METRICS else ()
        statement = request(operation, items, unseen)
        fate_unknown = False
        now = self._loop.time()
        expiry = None
        try:
            if self._connection is None or now - self._used > IDLE_S:
                self.close()
                self._connection = await self._open(until - now)
                self._loop.add_reader(self._connection._usock, self._receive)
            self._used = now
            expiry = self._loop.call_at(until, self._fail, TimeoutError())
            if commit is Commit.ALWAYS:
                fate_unknown = True
                outcomes = outcomes_of(await self._exchange(statement))
            else:
                outcomes = outcomes_of(await self._exchange(BEGIN, statement))
                fate_unknown = commit is Commit.ALL_STORED and all(outcome.kind == "duplicate" for outcome in outcomes)
                await self._exchange(COMMIT if fate_unknown else ROLLBACK)
        except pg8000.native.DatabaseError as error:
            translation = translated(error)
            if commit is not Commit.ALWAYS or not isinstance(translation, StatementRefused):
                self.close()  # whatever its state is, a new one is known to be clean
            raise translation from error
        except (pg8000.native.InterfaceError, OSError, struct.error) as error:
            self.close()
            raise (ConnectionLost if fate_unknown else StoreUnavailable)(cause_of(error)) from error
        except BaseException:
            self.close()
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
        if unseen and not outcomes and commit is not Commit.NEVER:
            self._seen.remember(items)
        return outcomes

    def close(self) -> None:
        """Drop the connection, if there is one, without waiting for anything."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._loop.remove_reader(connection._usock)
            self._loop.remove_writer(connection._usock)
            self._waits_to_send = False
            close_socket(connection)

    async def _open(self, timeout_s: float) -> pg8000.native.Connection:
        """Connect, in a thread: pg8000 can only wait. It is not one of the event loop's, which hold up the exit."""
        loop = self._loop
        made: asyncio.Future[pg8000.native.Connection] = loop.create_future()

        def settle(connection: pg8000.native.Connection | None, error: Exception | None) -> None:
            if connection is None:
                if not made.done():
                    made.set_exception(error or OSError())
            elif made.done():  # the time was up: nobody waits for it any more
                close_socket(connection)
            else:
                made.set_result(connection)

        def work() -> None:
            connection = failure = None
            try:
                connection = connect(self._database, min(timeout_s, CONNECT_TIMEOUT_S))
                connection._usock.setblocking(False)
            except Exception as error:  # noqa: BLE001  # raised where it is awaited
                failure = error
            try:
                loop.call_soon_threadsafe(settle, connection, failure)
            except RuntimeError:  # the loop has ended meanwhile
                if connection is not None:
                    close_socket(connection)

        threading.Thread(target=work, name="connect", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s):
                return await made
        except pg8000.native.DatabaseError as error:
            raise StoreUnavailable(reason_of(error)) from error
        except Exception as error:
            raise StoreUnavailable(cause_of(error)) from error

    async def _exchange(self, *statements: bytes) -> Any:
        """Send them and return the value of the one row that comes back, if one does.

        Raise pg8000's errors and OSError.
        """
        if self._connection is None:  # since the last exchange of the same call
            raise pg8000.native.InterfaceError("the connection is closed")
        self._context = _context()
        self._received.clear()
        self._answer = self._loop.create_future()
        self._unsent = memoryview(b"".join((*statements, pgwire.SYNC)))
        self._send()
        try:
            return await self._answer
        finally:
            self._answer = None

    def _send(self) -> None:
        """Send what the socket takes, and go on when it takes more."""
        connection = self._connection
        assert connection is not None
        try:
            self._unsent = self._unsent[connection._usock.send(self._unsent) :] or NOTHING
        except (BlockingIOError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._fail(error)
            return
        if bool(self._unsent) != self._waits_to_send:
            self._waits_to_send = not self._waits_to_send
            if self._waits_to_send:
                self._loop.add_writer(connection._usock, self._send)
            else:
                self._loop.remove_writer(connection._usock)

    def _receive(self) -> None:
        """Read what has come. On an idle connection that is its end, or notice of it: the rest is rare, and no loss."""
        connection = self._connection
        assert connection is not None
        try:
            chunk = connection._usock.recv(RECEIVE_BYTES)
            while isinstance(connection._usock, ssl.SSLSocket) and connection._usock.pending():
                chunk += connection._usock.recv(RECEIVE_BYTES)  # the loop does not see what TLS has read already
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:
            self._fail(error)
            return
        if not chunk or self._answer is None:
            told = f": {reason_of(self._context.error)}" if self._context.error else ""
            self._fail(pg8000.native.InterfaceError(f"the server closed the connection{told}"))
            return
        self._received += chunk
        try:
            self._read(connection)
        except Exception as error:  # noqa: BLE001
            # Whatever pg8000 makes of bytes that are no message. The loop would only log it, and the call wait for its
            # time to run out.
            self._fail(error)

    def _read(self, connection: pg8000.native.Connection) -> None:
        """Take the messages that are whole. The last of an exchange is READY_FOR_QUERY."""
        received = self._received
        at = 0
        while len(received) >= at + 5 and len(received) > (end := at + int.from_bytes(received[at + 1 : at + 5])):
            code, message = bytes(received[at : at + 1]), bytes(received[at + 5 : end + 1])
            at = end + 1
            connection.message_types[code](message, self._context)
            if code == pg8000.core.READY_FOR_QUERY and self._answer is not None and not self._answer.done():
                if self._context.error is not None:
                    self._answer.set_exception(self._context.error)
                else:
                    self._answer.set_result(_value(self._context))
        del received[:at]

    def _fail(self, error: Exception) -> None:
        """The exchange under way, if there is one, cannot be ended; the connection is of no more use."""
        if self._connection is not None:
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


def execute_blocking(connection: pg8000.native.Connection, operation: Operation, items: Sequence[Any]) -> list[Outcome]:
    """Do as Connection.execute does, in the transaction of a blocking connection. Raise pg8000's errors."""
    context = _context()
    connection._sock.write(request(operation, items, [True] * len(items)) + pgwire.SYNC)
    connection._sock.flush()
    connection.handle_messages(context)
    return outcomes_of(_value(context))


def _context() -> pg8000.core.Context:
    """What pg8000 puts an answer in: rows of one column, JSON."""
    return pg8000.core.Context(None, columns=(), input_funcs=(from_json,))


def _value(context: pg8000.core.Context) -> Any:
    return context.rows[0][0] if context.rows else None
