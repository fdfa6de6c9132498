"""pg8000: how a connection is made from the settings, and what its errors mean."""

import ssl
import traceback
from contextlib import suppress
from typing import Any

import pg8000.native

from metrics_ingest.errors import ConnectionLost, StatementRefused, StoreUnavailable
from metrics_ingest.settings import Database

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


def close_socket(connection: pg8000.native.Connection) -> None:
    """Close the socket now: it stays open as long as the file that pg8000 made of it, which only the collector ends."""
    connection._usock.close()
    with suppress(OSError, ValueError):
        connection._sock.close()


def translated(error: pg8000.native.DatabaseError) -> StoreUnavailable | StatementRefused:
    state = _fields(error).get("C", "")
    if state.startswith(("57P", "08")):
        return ConnectionLost(reason_of(error))
    if state.startswith(UNAVAILABLE):
        return StoreUnavailable(reason_of(error))
    return StatementRefused(_place(error))


def connect(database: Database, timeout_s: float | None) -> pg8000.native.Connection:
    """Connect as the settings say; `timeout_s` bounds each read and write. Raise pg8000's errors and OSError."""
    if database.cloud_sql_instance:
        from metrics_ingest.storage import cloudsql  # an extra, needed by nobody else

        connection = cloudsql.connect(database.cloud_sql_instance, database, timeout_s)
    else:
        connection = _connect(database, timeout_s)
    return connection


def _connect(database: Database, timeout_s: float | None) -> pg8000.native.Connection:
    try:
        return pg8000.native.Connection(**connection_arguments(database, timeout_s))
    except (pg8000.native.InterfaceError, pg8000.native.DatabaseError, OSError) as error:
        raise _server_error(error) from error.__cause__


def _server_error(error: BaseException) -> BaseException:
    """Return what the server said when it refused a connection, else `error`.

    A server that refuses a connection closes it, so that pg8000's attempt to close it, too, raises InterfaceError. Its
    context is the server's DatabaseError. The frames of both are cleared, because they refer to the socket and, by a
    reference cycle of pg8000's, to the error: the socket would stay open until the garbage collector runs.
    """
    found = error
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        if isinstance(error, pg8000.native.InterfaceError) and isinstance(link, pg8000.native.DatabaseError):
            found = link
        link = link.__context__
    return found


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


def _fields(error: BaseException) -> dict[str, str]:
    """The fields of a server's error by their codes (PostgreSQL manual: Error and Notice Message Fields)."""
    fields = error.args[0] if isinstance(error, pg8000.native.DatabaseError) and error.args else None
    return fields if isinstance(fields, dict) else {}


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of an error that the server has sent; empty for any other."""
    return _fields(error).get("C", "")


def reason_of(error: BaseException) -> str:
    """What happened, for logs and operators: the server's primary message and SQLSTATE, or the cause of another error.

    Not for errors about data, because their messages may quote values.
    """
    while error.__cause__ is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    if isinstance(error, TimeoutError):
        return "no answer in time"
    state = sqlstate(error)
    return f"{_fields(error).get('M', '')} ({state})" if state else f"{type(error).__name__}: {error}"


def _place(error: pg8000.native.DatabaseError) -> str:
    """The SQLSTATE and the names of what was violated, but no message: it may quote a row."""
    fields = _fields(error)
    return " ".join([fields.get("C", "?"), *(fields[key] for key in "stcnR" if key in fields)])


def cause_of(error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    return f"{type(cause).__name__}: {cause}"
