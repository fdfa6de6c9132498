"""The database half of the write path: one pg8000 connection and the functions that may be called through it.

Every call is one round trip, so any pooler will do; nothing of a session is relied on.
"""

import asyncio
import ssl
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, NamedTuple

import pg8000.core
import pg8000.native
from pydantic_core import from_json, to_json

from metrics_ingest import wire
from metrics_ingest.errors import ConnectionLost, StatementRefused, StoreUnavailable
from metrics_ingest.sessions import SeenSessions
from metrics_ingest.settings import Database

IDLE_S = 60.0  # firewalls and NATs forget idle connections, some after four minutes, and tell nobody
RECEIVE_BYTES = 65_536
NOTHING = memoryview(b"")
CONNECT_TIMEOUT_S = 5.0  # a first packet that was lost must not cost the whole time that a request has

# SQLSTATE classes and codes (PostgreSQL manual, appendix A) that say "not now", not "never".
UNAVAILABLE = (
    "08",  # connection exception
    "23503",  # the user or session was erased in this very moment: the next attempt says so
    "25006",  # read-only: a replica, or a server in failover
    "28",  # the login was refused: the operator's to mend, then a retry works
    "3D000",  # no such database yet
    "3F000", "42P01", "42883",  # not migrated yet
    "42501",  # not allowed to call the function (yet)
    "53",  # out of disk, memory or connections
    "55P03",  # lock not available
    "57",  # cancelled, shutting down, starting up
    "58",  # system error outside PostgreSQL
    "0A000",  # a cached plan whose result type a migration changed
    "40",  # deadlock or serialization failure
)  # fmt: skip


class Call(Enum):
    """What a connection can be asked to do with a list of items."""

    INGEST = "store_metrics"  # of metrics.Row
    REGISTER = "register_users"  # of {"user_id", "name", "email"}
    KEEP_REJECTED = "keep_rejected"  # of what rejected.py makes of them
    PING = "nothing"


PING, BEGIN, COMMIT, ROLLBACK = map(wire.statement, ("SELECT NULL", "BEGIN", "COMMIT", "ROLLBACK"))
INGEST = f"SELECT {Call.INGEST.value}($1, $2, $3, $4, $5, $6, $7)"


class Commit(Enum):
    """When the items of one call stay stored."""

    ALWAYS = 1
    ALL_STORED = 2  # none, when an item is rejected
    NEVER = 3  # a rehearsal, for the faults it finds


class Outcome(NamedTuple):
    """What became of the item at `position` (from 0). Items that were simply stored have none.

    `kind` is "duplicate", an error code, or for users "registered"; `facts` is what the database says about it.
    """

    position: int
    kind: str
    facts: dict[str, Any]


class Store:
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

    async def call(self, what: Call, items: Sequence[Any], commit: Commit, until: float) -> list[Outcome]:
        """Do `what` with the items, in one transaction, and return the outcomes worth telling, by position.

        `until` is a time of the event loop. Raise StoreUnavailable (ConnectionLost when the fate of the transaction is
        unknown) or StatementRefused.
        """
        unseen = self._seen.unseen(items) if what is Call.INGEST else ()
        statement = call_statement(what, items, unseen)
        fate_unknown = False
        now = self._loop.time()
        expiry = None
        try:
            if self._connection is None or now - self._used > IDLE_S:
                self.close()
                self._connection = await self._connect(until - now)
                self._loop.add_reader(self._connection._usock, self._receive)
            self._used = now
            expiry = self._loop.call_at(until, self._fail, TimeoutError())
            if commit is Commit.ALWAYS:
                fate_unknown = True
                outcomes = _outcomes(await self._exchange(statement))
            else:
                outcomes = _outcomes(await self._exchange(BEGIN, statement))
                fate_unknown = commit is Commit.ALL_STORED and all(outcome.kind == "duplicate" for outcome in outcomes)
                await self._exchange(COMMIT if fate_unknown else ROLLBACK)
        except pg8000.native.DatabaseError as error:
            translated = _translated(error)
            if commit is not Commit.ALWAYS or not isinstance(translated, StatementRefused):
                self.close()  # whatever its state is, a new one is known to be clean
            raise translated from error
        except (pg8000.native.InterfaceError, OSError, struct.error) as error:
            self.close()
            raise (ConnectionLost if fate_unknown else StoreUnavailable)(_cause(error)) from error
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
            _drop(connection)

    async def _connect(self, timeout_s: float) -> pg8000.native.Connection:
        """Connect, in a thread: pg8000 can only wait. It is not one of the event loop's, which hold up the exit."""
        loop = self._loop
        made: asyncio.Future[pg8000.native.Connection] = loop.create_future()

        def settle(connection: pg8000.native.Connection | None, error: Exception | None) -> None:
            if connection is None:
                if not made.done():
                    made.set_exception(error or OSError())
            elif made.done():  # the time was up: nobody waits for it any more
                _drop(connection)
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
                    _drop(connection)

        threading.Thread(target=work, name="connect", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s):
                return await made
        except pg8000.native.DatabaseError as error:
            raise StoreUnavailable(_reason(error)) from error
        except Exception as error:
            raise StoreUnavailable(_cause(error)) from error

    async def _exchange(self, *statements: bytes) -> Any:
        """Send them and return the value of the one row that comes back, if one does.

        Raise pg8000's errors and OSError.
        """
        if self._connection is None:  # since the last exchange of the same call
            raise pg8000.native.InterfaceError("the connection is closed")
        self._context = _context()
        self._received.clear()
        self._answer = self._loop.create_future()
        self._unsent = memoryview(b"".join((*statements, wire.SYNC)))
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
            told = f": {_reason(self._context.error)}" if self._context.error else ""
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


def call_statement(what: Call, items: Sequence[Any], unseen: Sequence[bool]) -> bytes:
    """The statement that does `what` with the items; `unseen` as in SeenSessions.unseen."""
    if what is Call.PING:
        return PING
    if what is not Call.INGEST:
        return wire.statement(f"SELECT {what.value}($1)", [wire.json(to_json(items))])
    user_ids, timestamps, metric_ids, session_ids, metric_types, values = zip(*items, strict=True)
    return wire.statement(INGEST, [
        wire.uuids(user_ids),
        wire.timestamps(timestamps),
        wire.uuids(metric_ids),
        wire.uuids(session_ids),
        wire.texts(metric_types),
        wire.floats(values),
        wire.booleans(unseen),
    ])  # fmt: skip


def call(connection: pg8000.native.Connection, what: Call, items: Sequence[Any]) -> list[Outcome]:
    """Do as Store.call does, on any connection and in its transaction, and wait for it. Raise pg8000's errors."""
    context = _context()
    connection._sock.write(call_statement(what, items, [True] * len(items)) + wire.SYNC)
    connection._sock.flush()
    connection.handle_messages(context)
    return _outcomes(_value(context))


def _context() -> pg8000.core.Context:
    """What pg8000 puts an answer in: rows of one column, JSON."""
    return pg8000.core.Context(None, columns=(), input_funcs=(from_json,))


def _value(context: pg8000.core.Context) -> Any:
    return context.rows[0][0] if context.rows else None


def _drop(connection: pg8000.native.Connection) -> None:
    """Close the socket now: it stays open as long as the file that pg8000 made of it, which only the collector ends."""
    connection._usock.close()
    with suppress(OSError, ValueError):
        connection._sock.close()


def _translated(error: pg8000.native.DatabaseError) -> StoreUnavailable | StatementRefused:
    state = _fields(error).get("C", "")
    if state.startswith(("57P", "08")):
        return ConnectionLost(_reason(error))
    if state.startswith(UNAVAILABLE):
        return StoreUnavailable(_reason(error))
    return StatementRefused(_place(error))


def connect(database: Database, timeout_s: float | None) -> pg8000.native.Connection:
    """Connect as the settings say; `timeout_s` bounds each read and write. Raise pg8000's errors and OSError."""
    if database.cloud_sql_instance:
        from metrics_ingest import cloudsql  # an extra, needed by nobody else

        connection = cloudsql.connect(database.cloud_sql_instance, database, timeout_s)
    else:
        connection = _connect(database, timeout_s)
    return connection


def _connect(database: Database, timeout_s: float | None) -> pg8000.native.Connection:
    try:
        return pg8000.native.Connection(**connection_arguments(database, timeout_s))
    except pg8000.native.InterfaceError as error:
        # A server that says no has hung up already when pg8000 says goodbye, and that error hides the server's.
        told: BaseException | None = error
        while told is not None and not isinstance(told, pg8000.native.DatabaseError):
            told = told.__context__
        raise (told or error) from error.__cause__


def connection_arguments(database: Database, timeout_s: float | None) -> dict[str, Any]:
    """The settings in pg8000's words."""
    unix_socket = f"{database.host}/.s.PGSQL.{database.port}" if database.host.startswith("/") else None
    return {
        "user": database.user,
        "host": database.host,
        "port": database.port,
        "database": database.database,
        "password": database.password or "",
        "unix_sock": unix_socket,
        "ssl_context": False if unix_socket else ssl_context(database),
        "timeout": timeout_s,
        "application_name": "metrics-ingest",
        "startup_params": {"client_encoding": "UTF8"},
    }


def ssl_context(database: Database) -> ssl.SSLContext | bool | None:
    """What pg8000 takes for libpq's sslmode: False is no TLS, None is TLS if the server has it."""
    if database.sslmode == "disable":
        return False
    if database.sslmode == "prefer":
        return None
    roots = None if database.sslrootcert == "system" else database.sslrootcert
    context = ssl.create_default_context(cafile=roots)
    context.check_hostname = database.sslmode == "verify-full"
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as libpq: the CAs of some managed databases are not that exact
    if database.sslmode == "require" and not roots:
        context.verify_mode = ssl.CERT_NONE
    return context


def _outcomes(answer: Sequence[dict[str, Any]] | None) -> list[Outcome]:
    return sorted(
        (Outcome(facts["position"] - 1, facts.get("outcome", "registered"), facts) for facts in answer or ()),
        key=lambda outcome: outcome.position,
    )


def _fields(error: pg8000.native.DatabaseError) -> dict[str, str]:
    return error.args[0] if error.args and isinstance(error.args[0], dict) else {}


def _reason(error: pg8000.native.DatabaseError) -> str:
    """The SQLSTATE and the primary message. For what is about the server only: others may quote values."""
    fields = _fields(error)
    return f"{fields.get('C', '?')}: {fields.get('M', '')}"


def _place(error: pg8000.native.DatabaseError) -> str:
    """The SQLSTATE and the names of what was violated, but no message: it may quote a row."""
    fields = _fields(error)
    return " ".join([fields.get("C", "?"), *(fields[key] for key in "stcnR" if key in fields)])


def _cause(error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    return f"{type(cause).__name__}: {cause}"
