"""Moves rows out of the default partition to partitions of their months, while ingestion continues.

docs/decisions/moving-rows-out-of-the-default.md has the reasons. For each month:

1. An empty table with all constraints and indexes is created, and its comment records that it is ours. A killed run
   leaves at most such tables, without a row.
2. One transaction copies the month's rows to it while ingestion continues, deletes them from the default, and then,
   with writers blocked, moves the rows that arrived since and attaches the table. So every snapshot has each row once:
   older snapshots, and a dump under way, have them in the default, newer ones in the month.

PostgreSQL scans the default when it attaches a month, and writers wait for that. So a large default is replaced in the
same way: the transaction detaches it, and attaches several months and a new default, with the rows of all other months.
"""

import time
from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

import click
from pg8000.native import DatabaseError

from metrics_ingest.admin import database, distributed, replaced
from metrics_ingest.admin.catalog import EMPTY_OF_OURS, FOREIGN_KEYS, MISSING_MONTHS, TIME_COLUMNS
from metrics_ingest.admin.console import Record
from metrics_ingest.admin.database import query, savepoint, transaction, with_table_locks
from metrics_ingest.admin.months import Partition, new_default, prepare
from metrics_ingest.storage.driver import sqlstate
from metrics_ingest.storage.table_locks import NotNow

MAX_ROWS_WHILE_BLOCKED = 2_000  # more new rows than this are copied before writers are blocked
VACUUM_ABOVE = 10_000  # deleted rows; attaching the next month scans the default, and writers wait for that
REPLACE_ABOVE = 100_000  # rows to be moved: scanning a default of that size takes some 30 ms
TRY_TO_REPLACE_FOR_S = 20.0  # then it goes on month by month
CHECK_VIOLATION = "23514"

# Rows of this transaction id or a later one, see OLDEST_UNSEEN.
NEWER_THAN = "age(xmin) <= age('{xmin}'::xid8::xid)"
# The transaction id from which on a snapshot of this moment may miss rows. Not pg_snapshot_xmin: it is never above this
# transaction's own id, so all rows that were inserted since this one began would count as unseen.
OLDEST_UNSEEN = """
    SELECT CAST(coalesce((SELECT xid FROM pg_snapshot_xip(pg_current_snapshot()) AS xid ORDER BY xid LIMIT 1),
                         pg_snapshot_xmax(pg_current_snapshot())) AS text)
"""
# Rows that no snapshot from this moment on can miss are received before this. Roles that may not see when others'
# transactions began get a later time: then a row may be left, which attaching finds, or who drops a replaced default.
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


class Copied(NamedTuple):
    """What was copied: how many rows, of which all are that are older than `xmin`; others are received `since`."""

    rows: int
    xmin: str
    since: datetime


class Moved(NamedTuple):
    """How many rows were deleted from the default and inserted elsewhere, the same in the end; others came `since`."""

    deleted: int
    inserted: int
    since: datetime


def drain(connection: Any, parent: str, ahead: int) -> Record:
    """Create the partitions for the default's rows and for `ahead` months, and move the rows. Raise ClickException.

    Return the names `created`, the number of rows `drained`, and `held_ms`: for how long writers were blocked at most.
    """
    _restore_autovacuum(connection, f"{parent}_default")
    replaced.drop(connection, parent)
    keys = query(connection, FOREIGN_KEYS, parent=parent)
    found = query(connection, MISSING_MONTHS.format(parent=parent, column=TIME_COLUMNS[parent], ahead=ahead))
    months = [month for row in found if _is_prepared(connection, month := Partition(parent=parent, keys=keys, **row))]
    if sum(month.rows for month in months) > VACUUM_ABOVE:
        connection.run(SUMMARIZE_BRIN_INDEXES, table=f"{parent}_default")
    created, drained, longest = [], 0, 0.0
    steps = _steps(connection, parent, months)
    on_citus = distributed.is_distributed(connection, parent)
    while partitions := next(steps, None):
        try:
            moved = distributed.move(connection, partitions[0]) if on_citus else _move(connection, partitions)
        except click.ClickException:
            if not partitions[-1].is_default:
                raise
            steps = chain(([month] for month in partitions[:-1]), steps)
            continue
        if moved is None:  # another run was faster
            continue
        rows, held_ms = moved
        if partitions[-1].is_default:
            rows += replaced.drop(connection, parent)
        for month in partitions:
            connection.run(SUMMARIZE_BRIN_INDEXES, table=month.table)
        created += [month.table for month in partitions if not month.is_default]
        drained, longest = drained + rows, max(longest, held_ms)
        if rows > VACUUM_ABOVE:
            connection.run(f"VACUUM (SKIP_LOCKED, ANALYZE) {parent}_default")
    return {"created": sorted(created), "drained": drained, "held_ms": round(longest, 1)}


def _restore_autovacuum(connection: Any, default: str) -> None:
    """Turn autovacuum of the default on again, which an earlier version turned off and left so when it was killed."""
    off = "SELECT FROM pg_class WHERE oid = to_regclass(:name) AND 'autovacuum_enabled=off' = ANY (reloptions)"

    def reset(wait_ms: int) -> None:
        with transaction(connection, lock_timeout_ms=wait_ms):
            connection.run(f"ALTER TABLE {default} RESET (autovacuum_enabled)")

    if connection.run(off, name=default):
        with_table_locks(connection, reset)


def _is_prepared(connection: Any, month: Partition) -> bool:
    if prepare(connection, month):
        return True
    click.echo(
        f"warning: {month.table} is a table, but not a partition of {month.parent}: no partition was made for that"
        f" month, and {month.rows:,} rows stay in {month.default}. Rename the table, then run this again",
        err=True,
    )
    return False


def _steps(connection: Any, parent: str, months: list[Partition]) -> Iterator[list[Partition]]:
    """Yield the partitions that one transaction attaches: a month, or several and a new default as the last one."""
    filled = [month for month in months if month.rows]
    if sum(month.rows for month in filled) > REPLACE_ABOVE and replaced.is_possible(connection, parent):
        default = new_default(filled)
        if prepare(connection, default):
            yield [*filled, default]
            months = [month for month in months if not month.rows]
    for month in months:
        yield [month]


def _move(connection: Any, partitions: list[Partition]) -> tuple[int, float] | None:
    """Move the rows of the partitions and attach them; return how many, and for how many ms writers were blocked.

    Return None when another run has done it meanwhile.
    """
    try:
        return _move_once(connection, partitions, copy_first=True)
    except RowsDeleted:  # an erasure, or a deletion by hand
        return _move_once(connection, partitions, copy_first=False)


def _move_once(connection: Any, partitions: list[Partition], *, copy_first: bool) -> tuple[int, float] | None:
    first = partitions[0]
    with transaction(connection):
        database.advisory_lock(connection, database.PARTITIONS_LOCK, until_commit=True)
        if not all(query(connection, EMPTY_OF_OURS, table=month.table, parent=month.parent) for month in partitions):
            return None
        copies = [
            _copy(connection, month) if copy_first and (month.rows or month.is_default) else None
            for month in partitions
        ]

        def attempt(wait_ms: int) -> tuple[int, float]:
            connection.run(f"SET LOCAL lock_timeout = {wait_ms}")
            try:
                return _attach(connection, partitions, copies, only_recent=True)
            except DatabaseError as error:
                if sqlstate(error) != CHECK_VIOLATION:
                    raise
            return _attach(connection, partitions, copies, only_recent=False)  # a late row has an earlier received_at

        tables = [first.parent, first.default, *(month.table for month in partitions)]
        # A metric that is sent again waits for its deleted row, and has locks meanwhile: a month has fewer such rows.
        patience_s = TRY_TO_REPLACE_FOR_S if partitions[-1].is_default else None
        moved, started = with_table_locks(connection, attempt, *tables, patience_s=patience_s)
        # Writers need not wait for the disk: what they commit later cannot be durable without this.
        connection.run("SET LOCAL synchronous_commit = off")
    return moved, (time.monotonic() - started) * 1000


def _copy(connection: Any, month: Partition) -> Copied:
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


def _copy_once(connection: Any, partition: Partition, newer: str) -> Copied:
    since = _oldest_transaction(connection)
    ((xmin,),) = connection.run(OLDEST_UNSEEN)
    rows = f"SELECT * FROM {partition.default} WHERE {partition.condition} {newer}"
    connection.run(f"INSERT INTO {partition.table} {rows}")
    return Copied(connection.row_count, xmin, since)


def _oldest_transaction(connection: Any) -> datetime:
    connection.run("SELECT pg_stat_clear_snapshot()")  # else the view is as of its first use in the transaction
    since: datetime = connection.run(OLDEST_TRANSACTION)[0][0]
    return since


def _attach(
    connection: Any, partitions: list[Partition], copies: list[Copied | None], *, only_recent: bool
) -> tuple[int, float]:
    """Delete the copied rows, block writers, move the rows that came since, and attach the partitions.

    Return how many rows were moved, and when writers were blocked. Raise RowsDeleted when rows were deleted after they
    were copied, NotNow when another session may have a snapshot that is too old.
    """
    parent, default = partitions[0].parent, partitions[0].default
    with savepoint(connection):
        # A metric that is sent again waits for its deleted row. So this is undone while the locks cannot be had.
        begun = [_begin(connection, *each) for each in zip(partitions, copies, strict=True)]
        if only_recent:  # a few block ranges of the BRIN index, whatever the planner knows about the table
            connection.run("SET LOCAL enable_seqscan = off")
        begun = [_go_on(connection, *each, only_recent) for each in zip(partitions, begun, strict=True)]
        for partition in partitions:
            connection.run(f"COMMENT ON TABLE {partition.table} IS NULL")  # RECORD
        # Writers lock in this order. The parent is locked before its partitions, and against readers, too, because a
        # reader that has planned without the month, and then waits for the default, would miss the moved rows.
        started = time.monotonic()
        for key in partitions[0].keys:
            connection.run(f"LOCK TABLE {key['target']} IN SHARE ROW EXCLUSIVE MODE")
        connection.run(f"LOCK TABLE ONLY {parent}, {default} IN ACCESS EXCLUSIVE MODE")
        moved = [_go_on(connection, *each, only_recent) for each in zip(partitions, begun, strict=True)]
        if any(deleted != inserted for deleted, inserted, _ in moved):
            raise RowsDeleted
        if partitions[-1].is_default:
            replaced.detach(connection, parent)
        for partition in partitions:
            connection.run(f"ALTER TABLE {parent} ATTACH PARTITION {partition.table} {partition.bounds}")
            connection.run(f"ALTER TABLE {partition.table} DROP CONSTRAINT IF EXISTS partition_to_be")
        if partitions[-1].is_default:
            connection.run(f"ALTER TABLE {partitions[-1].table} RENAME TO {default}")
        if any(deleted for deleted, _, _ in moved):
            _refuse_older_snapshots(connection)
    in_months = [deleted for month, (deleted, _, _) in zip(partitions, moved, strict=True) if not month.is_default]
    return sum(in_months), started


def _begin(connection: Any, partition: Partition, copied: Copied | None) -> Moved:
    """Delete what was copied, or move all rows when nothing was."""
    if copied:
        older = f"NOT {NEWER_THAN.format(xmin=copied.xmin)}"
        connection.run(f"DELETE FROM {partition.default} WHERE {partition.condition} AND {older}")
        return Moved(connection.row_count, copied.rows, copied.since)
    return _go_on(connection, partition, Moved(0, 0, _oldest_transaction(connection)), only_recent=False)


def _go_on(connection: Any, partition: Partition, moved: Moved, only_recent: bool) -> Moved:
    """Move the rows received since; return the sums of this and what was moved before."""
    recent = f"AND received_at >= '{moved.since.isoformat()}'" if only_recent else ""
    ((deleted, inserted),) = connection.run(f"""
        WITH deleted AS (DELETE FROM {partition.default} WHERE {partition.condition} {recent} RETURNING *),
             inserted AS (INSERT INTO {partition.table} SELECT * FROM deleted ON CONFLICT DO NOTHING RETURNING 1)
        SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM inserted)
    """)
    return Moved(moved.deleted + deleted, moved.inserted + inserted, moved.since)


def _refuse_older_snapshots(connection: Any) -> None:
    """Raise NotNow when another session may read with a snapshot from before this transaction's commit."""
    connection.run("SELECT pg_stat_clear_snapshot()")  # else the view is as of its first use in the transaction
    if connection.run(OLDER_SNAPSHOTS)[0][0]:
        raise NotNow
