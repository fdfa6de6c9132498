"""The database half of the write path: one pg8000 connection and the two functions that may be called through it.

Every call is one simple query and one round trip, so any pooler will do; nothing of a session is relied on.
"""

import ssl
import struct
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import pg8000.native
from pydantic_core import to_json

from metrics_ingest.errors import ConnectionLost, StatementRefused, StoreUnavailable
from metrics_ingest.settings import Database

# SQLSTATE classes and codes (PostgreSQL manual, appendix A) that say "not now", not "never".
UNAVAILABLE = (
    "08",  # connection exception
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

    INGEST = "SELECT ingest_metrics('{}'::json)"
    REGISTER = "SELECT register_users('{}'::json)"
    PING = "SELECT NULL -- {}"


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
    """One connection, made when first needed and dropped when it fails. Not for two threads at once."""

    def __init__(self, database: Database, timeout_s: float) -> None:
        self._database = database
        self._timeout_s = timeout_s
        self._connection: pg8000.native.Connection | None = None

    def call(self, what: Call, items: Sequence[Any], commit: Commit = Commit.ALWAYS) -> list[Outcome]:
        """Do `what` with the items, in one transaction, and return the outcomes worth telling, by position.

        Raise StoreUnavailable (ConnectionLost when the fate of the transaction is unknown) or StatementRefused.
        """
        statement = what.value.format(to_json(items).decode().replace("'", "''"))
        connection = self._connection or self._connect()
        try:
            if commit is Commit.ALWAYS:
                return _outcomes(connection.execute_simple(statement).rows[0][0])
            outcomes = _outcomes(connection.execute_simple(f"BEGIN; {statement}").rows[0][0])
            stays = commit is Commit.ALL_STORED and all(outcome.kind == "duplicate" for outcome in outcomes)
            connection.execute_simple("COMMIT" if stays else "ROLLBACK")
            return outcomes
        except pg8000.native.DatabaseError as error:
            raise self._translated(error) from error
        except (pg8000.native.InterfaceError, OSError, struct.error, AttributeError) as error:
            self.close()
            raise ConnectionLost(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Drop the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except (pg8000.native.InterfaceError, OSError, AttributeError):
                return  # it was broken already

    def _connect(self) -> pg8000.native.Connection:
        try:
            self._connection = connection = connect(self._database, self._timeout_s)
        except pg8000.native.DatabaseError as error:
            raise StoreUnavailable(_reason(error)) from error
        except (pg8000.native.InterfaceError, OSError, struct.error) as error:
            raise StoreUnavailable(f"{type(error).__name__}: {error}") from error
        return connection

    def _translated(self, error: pg8000.native.DatabaseError) -> StoreUnavailable | StatementRefused:
        self.close()  # whatever its state was, a new one is known to be clean
        state = _sqlstate(error)
        if state.startswith(("57", "08")):
            return ConnectionLost(_reason(error))
        return (StoreUnavailable if state.startswith(UNAVAILABLE) else StatementRefused)(_reason(error))


def connect(database: Database, timeout_s: float | None) -> pg8000.native.Connection:
    """Connect as the settings say; `timeout_s` bounds each read and write. Raise pg8000's errors and OSError."""
    connection = pg8000.native.Connection(**connection_arguments(database, timeout_s))
    if connection.parameter_statuses.get("standard_conforming_strings") != "on":
        connection.close()
        raise pg8000.native.InterfaceError("standard_conforming_strings is off: literals would not be safe")
    return connection


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
    context = ssl.create_default_context(cafile=database.sslrootcert)
    context.check_hostname = database.sslmode == "verify-full"
    if database.sslmode == "require" and not database.sslrootcert:
        context.verify_mode = ssl.CERT_NONE
    return context


def _outcomes(answer: Iterable[dict[str, Any]] | None) -> list[Outcome]:
    return sorted(
        (Outcome(facts["position"] - 1, facts.get("outcome", "registered"), facts) for facts in answer or ()),
        key=lambda outcome: outcome.position,
    )


def _sqlstate(error: pg8000.native.DatabaseError) -> str:
    return str(error.args[0].get("C", "")) if error.args and isinstance(error.args[0], dict) else ""


def _reason(error: pg8000.native.DatabaseError) -> str:
    """The SQLSTATE and the primary message: no detail, which may quote a row."""
    fields = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    return f"{fields.get('C', '?')}: {fields.get('M', type(error).__name__)}"
