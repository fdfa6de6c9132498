"""Reading from the database: one connection and one thread a process, apart from those that store metrics."""

import asyncio
import math
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import pg8000.native

from metrics_ingest.dashboard.configuration import configuration
from metrics_ingest.errors import Fault, Overloaded, StoreUnavailable
from metrics_ingest.settings import Database
from metrics_ingest.storage.driver import DatabaseSocket, connect, reason_of, sqlstate, translate

STATEMENT_TIMEOUT_S = 5
CONNECT_AND_ANSWER_S = 7.0  # for each read of the socket: more than a statement may take, so the server cancels first
MAX_WAITING = 32
MOST_REMEMBERED = 500  # results
MAX_WAIT_S = 10.0  # a request that waited longer is refused instead of read: its client has given up, or soon will

# Repeatable read, so that the queries of a reply agree. SET LOCAL, because a pooler may give another session next time.
BEGIN = f"""
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S}s';
    SET LOCAL timezone = 'UTC';
    SET LOCAL jit = off
"""
# What a person can do about an SQLSTATE, where the general message is of no help.
ADVICE = {
    "57014": f"the query took longer than {STATEMENT_TIMEOUT_S} s and was cancelled; choose a shorter time range",
    "42P01": "the database has no tables of metrics-ingest; run `metrics-ingest migrate`",
    "42501": "the database role of READ_DATABASE_URL may not read; run `metrics-ingest migrate` again to grant it",
    "28": "the database refused the login of READ_DATABASE_URL (or DATABASE_URL)",
}

Row = dict[str, Any]
Result = TypeVar("Result")


class QueryFailed(StoreUnavailable):
    """The database did not answer a query; the detail says what can be done about it."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.faults = (Fault("store_unavailable", advice),)


class TooManyReaders(Overloaded):
    """MAX_WAITING requests wait for the one connection already."""

    def __init__(self) -> None:
        super().__init__()
        self.faults = (Fault("overloaded", "too many requests are waiting to be read; send the same request again"),)


class Session:
    """One read-only transaction, begun by its first query; valid inside the function that is given to `Reader.read`."""

    def __init__(self, connection: pg8000.native.Connection, remembered: dict[object, tuple[float, Any]]) -> None:
        self._connection = connection
        self._remembered = remembered
        self._began = False

    def remember(self, key: object, compute: Callable[[], Result], keep_s: float = math.inf) -> Result:
        """The result of `compute`, from the last time that it was computed under this key, if that is not too long ago.

        The key must change with everything that the result depends on, unless it may be `keep_s` old.
        """
        now = time.monotonic()
        at, result = self._remembered.get(key, (-math.inf, None))
        if now - at >= keep_s or key not in self._remembered:
            result = compute()
            self._remembered.pop(key, None)
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[key] = now, result
        kept: Result = result
        return kept

    def before(self, sql: str) -> tuple[Any, ...]:
        """Run a query without parameters that returns one row, before the transaction: a third of the cost."""
        assert not self._began
        (row,) = self._connection.run(sql)
        return tuple(row)

    def end(self) -> None:
        """Commit the transaction, if there is one."""
        if self._began:
            self._connection.run("COMMIT")
            self._began = False

    def rows(self, sql: str, **parameters: Any) -> list[Row]:
        """Run one query and return its rows by column name."""
        if not self._began:
            self._connection.run(BEGIN)
            self._began = True
        values: Sequence[Sequence[Any]] = self._connection.run(sql, **parameters) or ()
        names = [column["name"] for column in self._connection.columns or ()]
        return [dict(zip(names, row, strict=True)) for row in values]

    def row(self, sql: str, **parameters: Any) -> Row:
        """Run a query that returns one row, and return it."""
        (row,) = self.rows(sql, **parameters)
        return row


class Reader:
    """The process's connection for reading, made when first needed and dropped when it fails."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._executor = ThreadPoolExecutor(1, "dashboard")
        self._connection: pg8000.native.Connection | None = None
        self._waiting = 0
        self._remembered: dict[object, tuple[float, Any]] = {}

    async def read(self, query: Callable[[Session], Result]) -> Result:
        """Call `query` in the reading thread, in a read-only transaction, and return its result.

        Raise StoreUnavailable, Overloaded (TooManyReaders), or what `query` raises itself.
        """
        if self._waiting >= MAX_WAITING:
            raise TooManyReaders
        self._waiting += 1
        try:
            until = time.monotonic() + MAX_WAIT_S
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, query, until)
        finally:
            self._waiting -= 1

    def _run(self, query: Callable[[Session], Result], until: float) -> Result:
        if time.monotonic() > until:
            raise TooManyReaders
        was_open = self._connection is not None
        try:
            return self._attempt(query)
        except StoreUnavailable as error:
            # The server or a firewall may have ended an idle connection; reading twice changes nothing.
            if not was_open or isinstance(error, QueryFailed) or isinstance(error.__cause__, TimeoutError):
                raise
        return self._attempt(query)

    def _attempt(self, query: Callable[[Session], Result]) -> Result:
        finished = False
        try:
            if self._connection is None:
                self._connection = connect(self._database, CONNECT_AND_ANSWER_S)
            session = Session(self._connection, self._remembered)
            result = query(session)
            session.end()
            finished = True
            return result
        except pg8000.native.DatabaseError as error:
            raise _failure(error) from error
        except (pg8000.native.InterfaceError, OSError, struct.error) as error:
            raise StoreUnavailable(reason_of(error)) from error
        finally:
            if not finished:
                self._close()  # a new connection is known to have no open transaction

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            DatabaseSocket(connection).close()


def _failure(error: pg8000.native.DatabaseError) -> Exception:
    state = sqlstate(error)
    for code, advice in ADVICE.items():
        if state.startswith(code):
            return QueryFailed(state, advice)
    return translate(error)


@cache
def reader() -> Reader:
    """The reader of this process, made by its first request: the server may fork before."""
    return Reader(configuration().database)
