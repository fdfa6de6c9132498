"""pg8000: opening a connection as the settings say, the socket of an open one, and the meaning of its errors."""

import os
import socket
import ssl
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pg8000.dbapi
import pg8000.native
from pg8000.exceptions import DatabaseError, InterfaceError

from metrics_ingest.errors import ConnectionLost, StatementRefused, StoreUnavailable
from metrics_ingest.settings import Database
from metrics_ingest.storage import pgwire

# SQLSTATE classes and codes (PostgreSQL manual, appendix A) of errors after which a retry may succeed.
UNAVAILABLE = (
    "08", "53", "57", "58",  # connection; out of disk, memory or connections; cancelled or shutting down; I/O error
    "28", "42501",  # the login or the call was refused: once the operator has corrected it, a retry works
    "3D000", "3F000", "42P01", "42883",  # no such database yet; not migrated yet
    "25006",  # read-only: a replica, or a server in failover
    "23503",  # the user or session was erased at this moment: the next attempt reports it
    "40", "55P03",  # deadlock or serialization failure; lock not available
    "0A000",  # a cached plan whose result type a migration changed
)  # fmt: skip
NOT_HERE = ("08", "57P", "53300")  # another host may take the connection: shutting down, starting, too many connections
LOST = ("08", "57P")  # of those, the ones after which the connection is unusable, whatever their severity
SESSION: dict[str, Any] = {"application_name": "metrics-ingest", "startup_params": {"client_encoding": "UTF8"}}
RECEIVE_BYTES = 65_536
# What values mean and how they are written, and what a transaction sees, must not depend on the settings of the
# database or the role. Connections of commands and of migrations send this first. Those of the writer do not, because
# poolers forget SET in transaction mode and refuse most of these as startup parameters: the functions of
# migrations/functions/ set what they need themselves.
SETTINGS = {
    "search_path": "public",
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "lock_timeout": "0",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "row_security": "off",  # a policy that hides rows is an error, not a missing row
}
PIN_SESSION = "SET default_transaction_isolation = 'read committed'; " + "; ".join(
    f"SET {name} = '{value}'" for name, value in SETTINGS.items()
)
# The same inside a transaction, which a pooler may run in another session than the one before.
PIN_TRANSACTION = "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in SETTINGS.items())


class DatabaseSocket:
    """The socket of a connection that pg8000 has opened and logged in.

    Only this class, `_Connection` and `_to_native` use pg8000's private attributes: pyproject.toml bounds its version,
    test_driver.py checks them.
    """

    def __init__(self, connection: pg8000.native.Connection) -> None:
        self.socket = connection._usock
        self._file = connection._sock  # pg8000's buffered file of the same socket, which may have read ahead
        if self.socket.family != socket.AF_UNIX:
            # Else the last part of a large request, which TLS sends in records of 16 KiB, waits until the one before is
            # acknowledged: up to 40 ms. libpq does so, too.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Close the socket now. Its file must be closed too, else it stays open until the file is collected."""
        self.socket.close()
        with suppress(OSError, ValueError):
            self._file.close()

    def exchange(self, statements: list[pgwire.Statement], status: bytes) -> list[Any]:
        """Run statements on a blocking connection; return their values. Raise pg8000's errors and OSError."""
        answer = pgwire.Answer(statements, status)
        self._file.write(pgwire.request(statements))
        self._file.flush()
        while not answer.feed(received := self._file.read1(RECEIVE_BYTES)):
            if not received:
                raise InterfaceError("the server closed the connection")
        return answer.values()


def connect(database: Database, timeout_s: float | None) -> pg8000.native.Connection:
    """Open a connection; `timeout_s` bounds each read and write on it. Raise pg8000's errors and OSError."""
    return _first_that_answers(_connect, database, timeout_s)


def _first_that_answers(
    attempt: Callable[[Database, float | None], Any], database: Database, timeout_s: float | None
) -> Any:
    """Connect to the first of the hosts that can be reached and takes connections. Raise what the last one raises."""
    each_s = timeout_s and timeout_s / (1 + len(database.others))
    for host, port in database.others:
        try:
            return attempt(database, each_s)
        except (InterfaceError, DatabaseError, OSError) as error:
            # What a server refuses for another reason, such as a wrong password, the others would, too.
            if isinstance(error, DatabaseError) and not sqlstate(error).startswith(NOT_HERE):
                raise
        database = replace(database, host=host, port=port)
    return attempt(database, each_s)


def _connect(database: Database, timeout_s: float | None) -> pg8000.native.Connection:
    if database.cloud_sql_instance:
        return _to_native(connect_dbapi(database, timeout_s))
    arguments = connection_arguments(database, timeout_s)
    opened = _open_socket(database, arguments.pop("unix_sock"), timeout_s)
    try:
        return _Connection(**arguments, sock=opened)
    except Exception as error:  # noqa: BLE001  # a server can make pg8000 raise anything, and it is raised again
        if opened.fileno() >= 0:
            # Not close(), after which it stays open for as long as the file that pg8000 made of it and left behind.
            os.close(opened.detach())
        raise _server_error(error) from error.__cause__


class _Connection(pg8000.native.Connection):  # type: ignore[misc]  # pg8000 has no types
    """pg8000's connection, which closes everything when the login fails: pg8000 leaves the socket's file open."""

    def close(self) -> None:
        """Close the connection. Raise InterfaceError."""
        if self._usock is None:
            super().close()  # which raises
            return
        opened = DatabaseSocket(self)
        try:
            super().close()
        finally:
            opened.close()


def _open_socket(database: Database, unix_socket: str | None, timeout_s: float | None) -> socket.socket:
    """Connect as pg8000 would, so that the socket can be closed whatever happens to it there. Raise OSError."""
    if unix_socket is None:
        opened = socket.create_connection((database.host, database.port), timeout_s)
    else:
        opened = socket.socket(socket.AF_UNIX)
        try:
            opened.settimeout(timeout_s)
            opened.connect(unix_socket)
        except BaseException:
            opened.close()
            raise
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return opened


def connect_dbapi(database: Database, timeout_s: float | None) -> pg8000.dbapi.Connection:
    """Open a connection as `connect` does, with the API of pg8000.dbapi."""
    return _first_that_answers(_connect_dbapi, database, timeout_s)


def _connect_dbapi(database: Database, timeout_s: float | None) -> pg8000.dbapi.Connection:
    if database.cloud_sql_instance:
        from metrics_ingest.storage import cloudsql  # an extra dependency, installed only where it is used

        return cloudsql.connect_with_iam(database.cloud_sql_instance, database, timeout=timeout_s or 30, **SESSION)
    return pg8000.dbapi.connect(**connection_arguments(database, timeout_s))


def _to_native(connection: pg8000.dbapi.Connection) -> pg8000.native.Connection:
    """Give a connection that the Cloud SQL connector has made the API of pg8000.native.

    The connector makes only connections of pg8000.dbapi. Both classes add nothing to CoreConnection but their methods
    and one attribute.
    """
    connection.__class__ = pg8000.native.Connection
    connection._context = None
    return connection


def _server_error(error: BaseException) -> BaseException:
    """Return what the server said when it refused a connection, else `error`.

    The server closes a refused connection, so that pg8000's own attempt raises InterfaceError in the context of the
    server's DatabaseError. The frames of both refer to the socket and, by a cycle of pg8000's, to the error: they are
    cleared, or the socket would stay open until the garbage collector runs.
    """
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        if isinstance(error, InterfaceError) and isinstance(link, DatabaseError):
            error = link
        link = link.__context__
    return error


def connection_arguments(database: Database, timeout_s: float | None) -> dict[str, Any]:
    """The settings as keyword arguments of pg8000's connect functions."""
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
        **SESSION,
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
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as libpq does, because CAs of some managed databases fail it
    if database.sslmode == "require" and not roots:
        context.verify_mode = ssl.CERT_NONE
    return context


def translate(error: Exception, *, may_be_committed: bool = False) -> StoreUnavailable | StatementRefused:
    """The error that requests get for a driver's error; ConnectionLost only if the transaction `may_be_committed`."""
    state = sqlstate(error)
    if not state or pgwire.is_fatal(error) or state.startswith(LOST):
        return (ConnectionLost if may_be_committed else StoreUnavailable)(reason_of(error))
    if state.startswith(UNAVAILABLE):
        return StoreUnavailable(reason_of(error))
    # Without the message, which may quote a row; with the names of what was violated (schema to routine).
    fields = _fields(error)
    return StatementRefused(" ".join([state, *(fields[key] for key in "stcnR" if key in fields)]))


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of an error that the server has sent; empty for any other."""
    return _fields(error).get("C", "")


def violated_constraint(error: BaseException) -> str:
    """The name of the constraint that a statement violates; empty for any other error."""
    return _fields(error).get("n", "")


def reason_of(error: BaseException) -> str:
    """What happened, for logs and operators. Not for errors about data, because their messages may quote values."""
    while error.__cause__ is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    if isinstance(error, TimeoutError):
        return "no answer in time"
    state = sqlstate(error)
    return f"{_fields(error).get('M', '')} ({state})" if state else f"{type(error).__name__}: {error}"


def _fields(error: BaseException) -> dict[str, str]:
    """The fields of a server's error by their codes (PostgreSQL manual: Error and Notice Message Fields)."""
    fields = error.args[0] if isinstance(error, DatabaseError) and error.args else None
    return fields if isinstance(fields, dict) else {}
