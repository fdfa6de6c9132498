"""The database half of the write path: one pg8000 connection and the two functions that may be called through it.

Every call is one simple query and one round trip, so any pooler will do; nothing of a session is relied on.
"""

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, NamedTuple

import pg8000.core
import pg8000.native
from pg8000.converters import literal
from pydantic_core import to_json

from metrics_ingest.errors import ConnectionLost, StatementRefused, StoreUnavailable
from metrics_ingest.settings import Database

IDLE_S = 60.0  # firewalls and NATs forget idle connections, some after four minutes, and tell nobody
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


COLUMNS = ("user_id", "timestamp", "metric_id", "session_id", "metric_type", "value")


class Call(Enum):
    """What a connection can be asked to do with a list of items."""

    INGEST = "ingest_metrics"  # of Metric, complete
    REGISTER = "register_users"  # of {"user_id", "name", "email"}
    KEEP_REJECTED = "keep_rejected"  # of what rejected.py makes of them
    PING = "nothing"


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

    The bytes travel by the event loop and pg8000 makes and reads the messages: a thread for each connection would have
    to fight the loop for the interpreter lock, which costs more than the whole transaction (docs/benchmarks.md).
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: pg8000.native.Connection | None = None
        self._used = 0.0  # when it was last known to be alive

    async def call(self, what: Call, items: Sequence[Any], commit: Commit, until: float) -> list[Outcome]:
        """Do `what` with the items, in one transaction, and return the outcomes worth telling, by position.

        `until` is a time of the event loop. Raise StoreUnavailable (ConnectionLost when the fate of the transaction is
        unknown) or StatementRefused.
        """
        statement = call_statement(what, items)
        fate_unknown = False
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(until):
                if self._connection is None or now - self._used > IDLE_S or _has_ended(self._connection):
                    self.close()
                    self._connection = await self._connect(until - now)
                self._used = now
                if commit is Commit.ALWAYS:
                    fate_unknown = True
                    return _outcomes(await self._run(statement))
                outcomes = _outcomes(await self._run(f"BEGIN; {statement}"))
                fate_unknown = commit is Commit.ALL_STORED and all(outcome.kind == "duplicate" for outcome in outcomes)
                await self._run("COMMIT" if fate_unknown else "ROLLBACK")
                return outcomes
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

    def close(self) -> None:
        """Drop the connection, if there is one, without waiting for anything."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _drop(connection)

    async def _connect(self, timeout_s: float) -> pg8000.native.Connection:
        """Connect, in a thread: pg8000 can only wait. It is not one of the event loop's, which hold up the exit."""
        loop = asyncio.get_running_loop()
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
            return await made
        except pg8000.native.DatabaseError as error:
            raise StoreUnavailable(_reason(error)) from error
        except Exception as error:
            raise StoreUnavailable(_cause(error)) from error

    async def _run(self, sql: str) -> Any:
        """Send one simple query and return the first value of its first row. Raise pg8000's errors and OSError."""
        connection = self._connection
        assert connection is not None
        text = sql.encode()
        unsent = memoryview(b"Q%b%b\0" % ((len(text) + 5).to_bytes(4), text))
        while unsent:
            try:
                unsent = unsent[connection._usock.send(unsent) :]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as blocked:
                await _ready(connection._usock, blocked, writing=True)
        context = pg8000.core.Context(sql)
        received = bytearray()
        while True:
            try:
                chunk = connection._usock.recv(65_536)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as blocked:
                await _ready(connection._usock, blocked, writing=False)
                continue
            if not chunk:
                told = f": {_reason(context.error)}" if context.error else ""
                raise pg8000.native.InterfaceError(f"the server closed the connection{told}")
            received += chunk
            while len(received) >= 5 and len(received) > (length := int.from_bytes(received[1:5])):
                code, message = bytes(received[:1]), bytes(received[5 : length + 1])
                del received[: length + 1]
                connection.message_types[code](message, context)
                if code == pg8000.core.READY_FOR_QUERY:
                    if context.error is not None:
                        raise context.error
                    return context.rows[0][0] if context.rows else None


def call_statement(what: Call, items: Sequence[Any]) -> str:
    """The SQL that does `what` with the items."""
    if what is Call.PING:
        return "SELECT NULL"
    if what is not Call.INGEST:
        return f"SELECT {what.value}({literal(to_json(items).decode())})"
    # A JSON array of numbers, or of quoted text without backslashes, is in braces an array of PostgreSQL's. Columns are
    # faster than objects to write and to read. None of these values can hold a backslash, nor a quote; but what
    # keeps SQL out stands here, not in another module's rules.
    columns = (to_json([item[name] for item in items]).decode()[1:-1].replace("'", "''") for name in COLUMNS)
    return "SELECT ingest_metrics(" + ",".join(f"'{{{column}}}'" for column in columns) + ")"


async def _ready(sock: socket.socket, blocked: OSError, *, writing: bool) -> None:
    """Wait until the socket can go on; TLS may have to write in order to read, and the other way round."""
    if isinstance(blocked, ssl.SSLError):
        writing = isinstance(blocked, ssl.SSLWantWriteError)
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    (loop.add_writer if writing else loop.add_reader)(sock, _wake, future)
    try:
        await future
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(sock)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _has_ended(connection: pg8000.native.Connection) -> bool:
    """Whether something has come on an idle connection: its end, or notice of it. The rest is rare, and no loss."""
    try:
        socket.socket.recv(connection._usock, 1, socket.MSG_PEEK)  # beneath TLS, whose own recv cannot peek
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


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
    if connection.parameter_statuses.get("standard_conforming_strings") != "on":
        connection.close()
        raise pg8000.native.InterfaceError("standard_conforming_strings is off: literals would not be safe")
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


def _outcomes(answer: Iterable[dict[str, Any]] | None) -> list[Outcome]:
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
