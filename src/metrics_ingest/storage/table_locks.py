"""Table locks that do not stop ingestion: the one way in which commands and migrations run DDL.

Every request for a lock on a table queues behind a session that waits for a conflicting one. So a command waits for
a short time, gives up, and lets the writers run for longer than it held them up, before it tries again. While a session
holds a conflicting lock for long (a report, `pg_dump`), it does not even ask.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pg8000.exceptions import DatabaseError

from metrics_ingest.storage.driver import sqlstate

Result = TypeVar("Result")
Run = Callable[[str], Any]  # runs SQL; returns the rows, or a DB-API cursor on them

# How long writers can wait behind one attempt: from the first wait to the longest. All are shorter than PostgreSQL's
# deadlock_timeout (1 s), so that in a deadlock with ingestion the command gives up, and no request fails.
FIRST_WAIT_MS, LONGEST_WAIT_MS = 50, 200
PAUSE = 8  # times the last wait, on average: writers are held up for at most an eighth of the time
STILL_HELD_AFTER_S = 0.1  # a lock that is held at the start and at the end of this time is held for long
LOCK_NOT_AVAILABLE, DEADLOCK = "55P03", "40P01"  # SQLSTATEs

# The virtual transaction ids of other sessions that have locked one of the tables in any mode.
HOLDERS = """
    SELECT virtualtransaction FROM pg_locks
    WHERE locktype = 'relation' AND granted AND pid <> pg_backend_pid()
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND relation IN ({})
"""


class NotNow(Exception):
    """Raised by an attempt that should be made again after a pause, for a reason other than a lock."""


class TablesLocked(Exception):
    """Other sessions have held conflicting locks for the whole time."""


def retry_until_locked(
    run: Run, attempt: Callable[[int], Result], *, tables: Sequence[str] = (), patience_s: float
) -> Result:
    """Call the attempt, which takes table locks, until it gets them. Raise TablesLocked after `patience_s`.

    It is told how many milliseconds it may wait for a lock, which it sets for its transaction: a setting of the session
    would be somebody else's behind a pooler. An attempt that fails must undo what it did, and release its locks. It is
    not made while another transaction has a lock on one of `tables` for long: name those that the attempt locks in
    ACCESS EXCLUSIVE mode.
    """
    deadline = time.monotonic() + patience_s
    wait_ms = FIRST_WAIT_MS
    while True:
        if not (tables and _held_for_long(run, tables)):
            try:
                return attempt(wait_ms)
            except (DatabaseError, NotNow) as error:
                if isinstance(error, DatabaseError) and sqlstate(error) not in (LOCK_NOT_AVAILABLE, DEADLOCK):
                    raise
                if time.monotonic() > deadline:
                    raise TablesLocked("a long transaction locks the tables") from error
            time.sleep(random.uniform(0.5, 1.5) * PAUSE * wait_ms / 1000)
            wait_ms = min(2 * wait_ms, LONGEST_WAIT_MS)
        elif time.monotonic() > deadline:
            raise TablesLocked("a long transaction locks the tables")


def _held_for_long(run: Run, tables: Sequence[str]) -> bool:
    """Whether one transaction of another session has locked one of the tables from now until STILL_HELD_AFTER_S."""
    holders = HOLDERS.format(", ".join(f"to_regclass('{table}')" for table in tables))
    before = {holder for (holder,) in _rows(run(holders))}
    if not before:
        return False
    time.sleep(STILL_HELD_AFTER_S)
    return any(holder in before for (holder,) in _rows(run(holders)))


def _rows(result: Any) -> Any:
    return result.fetchall() if hasattr(result, "fetchall") else result
