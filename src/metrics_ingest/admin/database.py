"""The database that the commands work on: connections, queries, transactions and locks."""

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import click
from pg8000.native import DatabaseError, InterfaceError, literal

from metrics_ingest.admin.console import Record, Unreachable
from metrics_ingest.settings import BadSetting, Database, read_database
from metrics_ingest.storage.driver import PIN_SESSION, connect, reason_of, sqlstate

# Advisory locks, by the names that the SQL functions hash, too.
PARTITIONS_LOCK = "metrics-ingest partitions"  # taken by create_metrics_partitions
SUMMARIES_LOCK = "metrics-ingest summaries"  # taken by refresh_summaries

# How long a request can wait behind a table lock that a command has asked for and not got. It is shorter than
# PostgreSQL's deadlock_timeout (1 s): in a deadlock with ingestion, the command gives up first.
LOCK_TIMEOUT_MS = 200
LOCK_RETRY_FOR_S = 120.0
LOCK_NOT_AVAILABLE, DEADLOCK = "55P03", "40P01"  # SQLSTATEs


def configured_database() -> Database:
    """Return the database that the environment names. Raise click.UsageError when it names none."""
    try:
        return read_database(os.environ)
    except BadSetting as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def open_connection() -> Iterator[Any]:
    """Open a pg8000 connection to the configured database, with PIN_SESSION; close it at the end.

    Raise Unreachable when it cannot be opened or is lost, ClickException when the database refuses a statement.
    """
    database = configured_database()
    try:
        connection = connect(database, None)
    except (DatabaseError, InterfaceError, OSError) as error:
        where = f"{database.host}:{database.port}/{database.database}"
        raise Unreachable(f"cannot reach the database at {where}: {reason_of(error)}") from error
    try:
        connection.run(PIN_SESSION)
        yield connection
    except DatabaseError as error:
        raise click.ClickException(f"the database refused a statement: {reason_of(error)}") from error
    except InterfaceError as error:
        raise Unreachable(f"the connection to the database was lost: {reason_of(error)}") from error
    finally:
        with suppress(InterfaceError, OSError):  # it may be broken already
            connection.close()


def let_reader_log_in(password: str) -> None:
    """Give the role metrics_reader this password. Raise ClickException when the database's role may not do that."""
    with open_connection() as connection:
        connection.run(f"ALTER ROLE metrics_reader LOGIN PASSWORD {literal(password)}")


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
def transaction(connection: Any, modes: str = "") -> Iterator[None]:
    """Commit what the block does, or roll it back when it raises. `modes` are BEGIN's, like an isolation level."""
    connection.run(f"BEGIN {modes}")
    try:
        yield
        connection.run("COMMIT")
    except BaseException:
        connection.run("ROLLBACK")
        raise


def advisory_lock(connection: Any, name: str, *, until_commit: bool = False) -> None:
    """Wait for an advisory lock; hold it until the connection is closed, or until the transaction ends."""
    function = "pg_advisory_xact_lock" if until_commit else "pg_advisory_lock"
    connection.run(f"SELECT {function}(hashtext(:name))", name=name)


def retry_until_locked(connection: Any, action: Callable[..., Any], *arguments: Any) -> Any:
    """Call the action until it gets its locks. Raise ClickException after LOCK_RETRY_FOR_S."""
    deadline = time.monotonic() + LOCK_RETRY_FOR_S
    connection.run(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
    try:
        while True:
            try:
                return action(*arguments)
            except DatabaseError as error:
                if sqlstate(error) not in (LOCK_NOT_AVAILABLE, DEADLOCK):
                    raise
                if time.monotonic() > deadline:
                    message = "a long transaction locks the tables; nothing was changed, try later"
                    raise click.ClickException(message) from error
            time.sleep(random.uniform(0.05, 0.5))  # lets the writers run that queued behind this lock request
    finally:
        connection.run("RESET lock_timeout")
