"""The database that the commands work on: connections, queries, transactions and locks."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from pg8000.native import Error, InterfaceError, identifier, literal

from metrics_ingest.admin.console import Record, Unreachable
from metrics_ingest.errors import ConnectionLost
from metrics_ingest.settings import BadSetting, Database, read_database
from metrics_ingest.storage.driver import PIN_SESSION, PIN_TRANSACTION, connect, reason_of, translate
from metrics_ingest.storage.table_locks import DEADLOCK as DEADLOCK
from metrics_ingest.storage.table_locks import TablesLocked, retry_until_locked

# Advisory locks, by the names that the SQL functions hash, too.
PARTITIONS_LOCK = "metrics-ingest partitions"  # taken by create_metrics_partitions
SUMMARIES_LOCK = "metrics-ingest summaries"  # taken by refresh_summaries

LOCK_RETRY_FOR_S = 120.0
# What a read of the socket raises beside pg8000's errors. Not BrokenPipeError, which standard output raises as well.
CONNECTION_BROKEN = (ConnectionResetError, ConnectionAbortedError, TimeoutError)
RUNNING = Path(".local/running.json")  # written by `make run` with an embedded database: process, url, database_url


def configured_database() -> Database:
    """Return the database that the environment names, or that of a running `make run`, and say so on standard error.

    Raise click.UsageError when there is neither.
    """
    environ: Mapping[str, str] = os.environ
    if not (environ.get("DATABASE_URL") or environ.get("PGHOST")) and (emulator := running_emulator()):
        click.echo(f"using the database of `make run` in {emulator['directory']}", err=True)
        environ = {"DATABASE_URL": emulator["database_url"]}
    try:
        return read_database(environ)
    except BadSetting as error:
        raise click.UsageError(f"{error}; or start `make run` here, whose database is used then") from error


def running_emulator() -> dict[str, Any] | None:
    """Return what RUNNING says of a `make run` that runs in this directory or one above it, and that directory."""
    here = Path.cwd()
    for directory in (here, *here.parents):
        with suppress(OSError, ValueError, KeyError):  # no `make run`, or not any more
            running = json.loads((directory / RUNNING).read_text())
            os.kill(running["process"], 0)
            return {**running, "directory": directory}
    return None


def failure(error: Exception, attempt: str = "") -> click.ClickException:
    """Return what a command raises for a driver's error: Unreachable when there is no usable connection.

    The message begins with `attempt`, what could not be done.
    """
    if isinstance(translate(error, may_be_committed=True), ConnectionLost):
        return Unreachable(f"{attempt or 'the connection to the database was lost'}: {reason_of(error)}")
    return click.ClickException(f"{attempt or 'the database refused a statement'}: {reason_of(error)}")


@contextmanager
def open_connection() -> Iterator[Any]:
    """Open a pg8000 connection to the configured database, with PIN_SESSION; close it at the end.

    Raise Unreachable when it cannot be opened or is lost, ClickException when the database refuses a statement.
    """
    database = configured_database()
    try:
        connection = connect(database, None)
    except (Error, OSError) as error:
        raise failure(error, f"cannot reach the database at {database.address}") from error
    try:
        connection.run(PIN_SESSION)
        yield connection
    except (Error, *CONNECTION_BROKEN) as error:
        raise failure(error) from error
    finally:
        with suppress(InterfaceError, OSError):  # it may be broken already
            connection.close()


def allow_login(role: str, password: str) -> None:
    """Give a role of ours this password. Raise ClickException when the database's role may not do that."""
    with open_connection() as connection:
        connection.run(f"ALTER ROLE {identifier(role)} LOGIN PASSWORD {literal(password)}")


def query(connection: Any, sql: str, **parameters: Any) -> list[Record]:
    """Run a query; return its rows as dictionaries by column name."""
    values = connection.run(sql, **parameters)
    names = [column["name"] for column in connection.columns]
    return [dict(zip(names, row, strict=True)) for row in values]


def where(conditions: Mapping[str, object]) -> str:
    """Build a WHERE clause of all conditions whose value is not None.

    A condition has `{}` where its value goes, which is quoted as a literal, because COPY takes no parameters.
    """
    chosen = [condition.format(literal(value)) for condition, value in conditions.items() if value is not None]
    return f"WHERE {' AND '.join(chosen or ['true'])}"


@contextmanager
def transaction(
    connection: Any, modes: str = "ISOLATION LEVEL READ COMMITTED", *, lock_timeout_ms: int = 0
) -> Iterator[None]:
    """Commit what the block does, or roll it back when the block raises. The settings are pinned again inside."""
    connection.run(f"BEGIN {modes}; {PIN_TRANSACTION}; SET LOCAL lock_timeout = {lock_timeout_ms}")
    try:
        yield
        connection.run("COMMIT")
    except BaseException:
        with suppress(InterfaceError, OSError):  # a lost connection has rolled back, and its error is raised
            connection.run("ROLLBACK")
        raise


@contextmanager
def savepoint(connection: Any) -> Iterator[None]:
    """Undo what the block did in the transaction, and release its locks, when the block raises."""
    connection.run("SAVEPOINT attempt")
    try:
        yield
        connection.run("RELEASE SAVEPOINT attempt")
    except BaseException:
        with suppress(InterfaceError, OSError):
            connection.run("ROLLBACK TO SAVEPOINT attempt; RELEASE SAVEPOINT attempt")
        raise


def advisory_lock(connection: Any, name: str, *, until_commit: bool = False) -> None:
    """Wait for an advisory lock; hold it until the connection is closed, or until the transaction ends."""
    function = "pg_advisory_xact_lock" if until_commit else "pg_advisory_lock"
    connection.run(f"SELECT {function}(hashtext(:name))", name=name)


def with_table_locks(
    connection: Any, attempt: Callable[[int], Any], *tables: str, patience_s: float | None = None
) -> Any:
    """Call the attempt until it gets its table locks, as storage.table_locks does; return its result.

    It is told for how many milliseconds it may wait: the `lock_timeout_ms` of its transaction. `tables` are those that
    it locks in ACCESS EXCLUSIVE mode. Raise ClickException after `patience_s`, which is LOCK_RETRY_FOR_S by default.
    """
    patience_s = LOCK_RETRY_FOR_S if patience_s is None else patience_s
    try:
        return retry_until_locked(connection.run, attempt, tables=tables, patience_s=patience_s)
    except TablesLocked as error:
        raise click.ClickException(f"{error}; this step was not done, try later") from error
