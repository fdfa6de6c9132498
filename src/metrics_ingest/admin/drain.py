"""Creates partitions of months, and moves their rows out of the default partition, while ingestion continues.

docs/decisions/moving-rows-out-of-the-default.md has the reasons. For each month:

1. An empty table with all constraints and indexes is created, and its comment records that it is ours. A killed run
   leaves at most this table, without a row.
2. One transaction copies the month's rows to it while ingestion continues, deletes them from the default, and then,
   with writers blocked, moves the rows that arrived since and attaches the table. So every snapshot has each row once:
   older snapshots, and a dump under way, have them in the default, newer ones in the month.
"""

import time
from datetime import datetime
from typing import Any, NamedTuple

import click
from pg8000.native import DatabaseError

from metrics_ingest.admin import database
from metrics_ingest.admin.catalog import EMPTY_OF_OURS, FOREIGN_KEYS, MISSING_MONTHS, RECORD, TIME_COLUMNS
from metrics_ingest.admin.console import Record
from metrics_ingest.admin.database import query, savepoint, transaction, with_table_locks
from metrics_ingest.storage.driver import sqlstate
from metrics_ingest.storage.table_locks import NotNow

MAX_ROWS_WHILE_BLOCKED = 2_000  # more new rows than this are copied before writers are blocked
VACUUM_ABOVE = 10_000  # deleted rows; attaching the next month scans the default, and writers wait for that
CHECK_VIOLATION = "23514"

# Rows that a snapshot with this xmin may not have seen. It saw all rows of older transactions.
NEWER_THAN = "age(xmin) <= age('{xmin}'::xid8::xid)"
# Rows that no snapshot from this moment on can miss are received before this. Roles that may not see when others'
# transactions began get a later time: then a row may be left, which attaching finds.
OLDEST_TRANSACTION = """
    SELECT least(clock_timestamp(), min(xact_start))
    FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
# Sessions that may read with a snapshot from before this moment. A query of theirs for this month would find a moved
# row neither there, where it is too new for the snapshot, nor in the default, which the planner leaves out. A
# transaction past its first statement may have such a snapshot, and a reader that waits for the table has one. Not
# writers, which read none of these rows, nor another run of maintenance, which waits for the advisory lock.
OLDER_SNAPSHOTS = """
    SELECT count(*) FROM pg_stat_activity AS other
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
      AND (backend_xmin IS NOT NULL AND (state <> 'active' OR xact_start < query_start)
           AND NOT EXISTS (SELECT FROM pg_locks
                           WHERE pg_locks.pid = other.pid AND NOT granted
                             AND (mode = 'RowExclusiveLock' OR locktype = 'advisory'))
        OR EXISTS (SELECT FROM pg_locks
                   WHERE pg_locks.pid = other.pid AND NOT granted AND mode = 'AccessShareLock'))
"""
SUMMARIZE_BRIN_INDEXES = """
    SELECT brin_summarize_new_values(indexrelid)
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
    WHERE amname = 'brin' AND indrelid = to_regclass(:table)
"""


class RowsDeleted(Exception):
    """Rows were deleted from the default after they were copied."""


class Month(NamedTuple):
    """A month to be made: its table, and the rows of the default that belong to it."""

    parent: str
    table: str
    condition: str  # of its rows
    bounds: str
    rows: int  # in the default, when the run began
    keys: list[Record]  # FOREIGN_KEYS of the parent

    @property
    def default(self) -> str:
        """The table that its rows are in."""
        return f"{self.parent}_default"


class Copied(NamedTuple):
    """What was copied: how many rows, of which all are that are older than `xmin`; others are received `since`."""

    rows: int
    xmin: str
    since: datetime | None


NOTHING_COPIED = Copied(0, "", None)


def drain(connection: Any, parent: str, ahead: int) -> Record:
    """Create the partitions for the default's rows and for `ahead` months, and move the rows. Raise ClickException.

    Return the names `created`, the number of rows `drained`, and `held_ms`: for how long writers were blocked at most.
    """
    _restore_autovacuum(connection, f"{parent}_default")
    keys = query(connection, FOREIGN_KEYS, parent=parent)
    found = query(connection, MISSING_MONTHS.format(parent=parent, column=TIME_COLUMNS[parent], ahead=ahead))
    if sum(row["rows"] for row in found) > VACUUM_ABOVE:
        connection.run(SUMMARIZE_BRIN_INDEXES, table=f"{parent}_default")
    created, drained, longest = [], 0, 0.0
    for month in (Month(parent=parent, keys=keys, **row) for row in found):
        if not _prepare(connection, month):
            click.echo(
                f"warning: {month.table} is a table, but not a partition of {parent}: no partition was made for that"
                f" month, and {month.rows:,} rows stay in {month.default}. Rename the table, then run this again",
                err=True,
            )
            continue
        moved = _move(connection, month)
        if moved is None:  # another run was faster
            continue
        rows, held_ms = moved
        connection.run(SUMMARIZE_BRIN_INDEXES, table=month.table)
        created.append(month.table)
        drained, longest = drained + rows, max(longest, held_ms)
        if rows > VACUUM_ABOVE:
            connection.run(f"VACUUM (SKIP_LOCKED, ANALYZE) {month.default}")
    return {"created": created, "drained": drained, "held_ms": round(longest, 1)}


def _restore_autovacuum(connection: Any, default: str) -> None:
    """Turn autovacuum of the default on again, which an earlier version turned off and left so when it was killed."""
    off = "SELECT FROM pg_class WHERE oid = to_regclass(:name) AND 'autovacuum_enabled=off' = ANY (reloptions)"
    if connection.run(off, name=default):
        reset = f"ALTER TABLE {default} RESET (autovacuum_enabled)"
        with_table_locks(connection, lambda: connection.run(reset))


def _prepare(connection: Any, month: Month) -> bool:
    """Create the month's empty table, with everything that attaching it would have to build.

    Return False when there is a table with its name that this program did not make, or that has rows.
    """

    def attempt() -> bool:
        with transaction(connection):
            database.advisory_lock(connection, database.PARTITIONS_LOCK, until_commit=True)
            if connection.run("SELECT WHERE to_regclass(:table) IS NOT NULL", table=month.table):
                found = query(connection, EMPTY_OF_OURS, table=month.table, parent=month.parent)
                if not found or connection.run(f"SELECT FROM {month.table} LIMIT 1"):
                    return False
                if found[0]["same_columns"]:
                    return True
                connection.run(f"LOCK TABLE {month.table} IN ACCESS EXCLUSIVE MODE")
                if connection.run(f"SELECT FROM {month.table} LIMIT 1"):
                    return False
                connection.run(f"DROP TABLE {month.table}")
            # With the parent's indexes and a check that implies the bounds, attaching scans and builds nothing.
            check = f"CONSTRAINT partition_to_be CHECK ({month.condition})"
            connection.run(f"CREATE TABLE {month.table} (LIKE {month.parent} INCLUDING ALL, {check})")
            for key in month.keys:
                connection.run(f"ALTER TABLE {month.table} ADD CONSTRAINT {key['conname']} {key['definition']}")
            ((owner, current),) = connection.run(
                "SELECT quote_ident(pg_get_userbyid(relowner)), quote_ident(current_user) FROM pg_class"
                " WHERE oid = to_regclass(:parent)", parent=month.parent)  # fmt: skip
            if owner != current:  # else that role could not migrate any more
                connection.run(f"ALTER TABLE {month.table} OWNER TO {owner}")
            connection.run(f"COMMENT ON TABLE {month.table} IS '{RECORD}'")
        return True

    return bool(with_table_locks(connection, attempt))


def _move(connection: Any, month: Month) -> tuple[int, float] | None:
    """Move the month's rows and attach its table; return how many, and for how many ms writers were blocked.

    Return None when another run has done it meanwhile.
    """
    try:
        return _move_once(connection, month, copy_first=True)
    except RowsDeleted:  # an erasure, or a deletion by hand
        return _move_once(connection, month, copy_first=False)


def _move_once(connection: Any, month: Month, *, copy_first: bool) -> tuple[int, float] | None:
    with transaction(connection):
        database.advisory_lock(connection, database.PARTITIONS_LOCK, until_commit=True)
        if not query(connection, EMPTY_OF_OURS, table=month.table, parent=month.parent):
            return None
        copied = _copy(connection, month) if copy_first and month.rows else NOTHING_COPIED

        def attempt() -> tuple[int, float]:
            try:
                return _attach(connection, month, copied, only_recent=bool(copied.rows))
            except DatabaseError as error:
                if sqlstate(error) != CHECK_VIOLATION:
                    raise
            return _attach(connection, month, copied, only_recent=False)  # a late row has an earlier received_at

        moved, started = with_table_locks(connection, attempt, month.parent, month.default, month.table)
        # Writers need not wait for the disk: what they commit later cannot be durable without this.
        connection.run("SET LOCAL synchronous_commit = off")
    return moved, (time.monotonic() - started) * 1000


def _copy(connection: Any, month: Month) -> Copied:
    """Copy the month's rows to its table until few new ones are left."""
    copied = _copy_once(connection, month, "")
    connection.run("SELECT pg_stat_force_next_flush()")  # else the copied rows are counted again after ANALYZE
    connection.run(f"ANALYZE {month.table}")
    for _ in range(10):
        newer = f"AND {NEWER_THAN.format(xmin=copied.xmin)} ON CONFLICT DO NOTHING"
        more = _copy_once(connection, month, newer)
        copied = more._replace(rows=copied.rows + more.rows)
        if more.rows <= MAX_ROWS_WHILE_BLOCKED:
            break
    return copied


def _copy_once(connection: Any, month: Month, newer: str) -> Copied:
    connection.run("SELECT pg_stat_clear_snapshot()")  # else the view is as of its first use in the transaction
    ((since,),) = connection.run(OLDEST_TRANSACTION)
    ((xmin,),) = connection.run("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
    connection.run(f"INSERT INTO {month.table} SELECT * FROM {month.default} WHERE {month.condition} {newer}")
    return Copied(connection.row_count, xmin, since)


def _attach(connection: Any, month: Month, copied: Copied, *, only_recent: bool) -> tuple[int, float]:
    """Delete the copied rows, block writers, move the rows that came since, and attach the table.

    Return how many rows were moved, and when writers were blocked. Raise RowsDeleted when rows were deleted after they
    were copied, NotNow when another session may have a snapshot that is too old.
    """
    recent = f"AND received_at >= '{copied.since.isoformat()}'" if only_recent and copied.since else ""
    with savepoint(connection):
        # A metric that is sent again waits for its deleted row. So this is undone while the locks cannot be had.
        if copied.rows:
            older = f"NOT {NEWER_THAN.format(xmin=copied.xmin)}"
            connection.run(f"DELETE FROM {month.default} WHERE {month.condition} AND {older}")
            deleted, inserted = connection.row_count, copied.rows
        else:
            deleted, inserted = _take_over(connection, month, "")
        # Writers lock in this order. The parent is locked before its partitions, and against readers, too, because a
        # reader that has planned without the month, and then waits for the default, would miss the moved rows.
        started = time.monotonic()
        for key in month.keys:
            connection.run(f"LOCK TABLE {key['target']} IN SHARE ROW EXCLUSIVE MODE")
        connection.run(f"LOCK TABLE ONLY {month.parent}, {month.default} IN ACCESS EXCLUSIVE MODE")
        if recent:  # a few block ranges of the BRIN index, whatever the planner knows about the table
            connection.run("SET LOCAL enable_seqscan = off")
        late_deleted, late_inserted = _take_over(connection, month, recent)
        if deleted + late_deleted != inserted + late_inserted:
            raise RowsDeleted
        connection.run(f"ALTER TABLE {month.parent} ATTACH PARTITION {month.table} FOR VALUES {month.bounds}")
        connection.run(f"ALTER TABLE {month.table} DROP CONSTRAINT partition_to_be")
        connection.run(f"COMMENT ON TABLE {month.table} IS NULL")
        if deleted + late_deleted:
            _refuse_older_snapshots(connection)
    return deleted + late_deleted, started


def _take_over(connection: Any, month: Month, recent: str) -> tuple[int, int]:
    """Move rows directly; return how many were deleted from the default, and how many of these were not copied."""
    ((deleted, inserted),) = connection.run(f"""
        WITH deleted AS (DELETE FROM {month.default} WHERE {month.condition} {recent} RETURNING *),
             inserted AS (INSERT INTO {month.table} SELECT * FROM deleted ON CONFLICT DO NOTHING RETURNING 1)
        SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM inserted)
    """)
    return deleted, inserted


def _refuse_older_snapshots(connection: Any) -> None:
    """Raise NotNow when another session may read with a snapshot from before this transaction's commit."""
    connection.run("SELECT pg_stat_clear_snapshot()")  # else the view is as of its first use in the transaction
    if connection.run(OLDER_SNAPSHOTS)[0][0]:
        raise NotNow
