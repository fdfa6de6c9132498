"""Moves rows out of a default partition into partitions of their months, while ingestion continues.

PostgreSQL does not attach a month's partition while the default has rows of that month. Those rows cannot be deleted
first, because each must be visible, and found as a duplicate, at every moment. Therefore:

1. The rows are copied to tables that are not attached yet. Ingestion continues.
2. One short transaction, which blocks writers, sets aside the rows that arrived since the copy, truncates the default,
   attaches the tables (their constraints are validated before, so nothing is scanned) and inserts what was set aside.

A reader sees each row exactly once, before and after.
"""

import time
from typing import Any

import click

from metrics_ingest.admin.console import Record
from metrics_ingest.admin.database import query, retry_until_locked, transaction

TIME_COLUMNS = {"metrics": "timestamp", "rejected_metrics": "received_at"}  # what each table is partitioned by
MAX_ROWS_WHILE_BLOCKED = 2_000  # more new rows than this are copied before writers are blocked

UNATTACHED_TABLES = """
    SELECT conrelid::regclass::text AS name FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
    WHERE conname = 'partition_to_be' AND NOT relispartition
"""
FOREIGN_KEYS = """
    SELECT conname, pg_get_constraintdef(oid) AS definition, confrelid::regclass::text AS target
    FROM pg_constraint WHERE conrelid = CAST(:parent AS regclass) AND contype = 'f'
"""
MISSING_MONTHS = """
    SELECT '{parent}_p' || to_char(month, 'YYYY_MM') AS table,
           format('{column} >= %L AND {column} < %L', month, month + interval '1 month') AS condition,
           format('FROM (%L) TO (%L)', month, month + interval '1 month') AS bounds
    FROM (SELECT DISTINCT date_trunc('month', {column}) FROM {parent}_default
          UNION SELECT date_trunc('month', now()) + make_interval(months => ahead)
          FROM generate_series(0, {ahead}) AS ahead) AS wanted (month)
    WHERE NOT EXISTS (SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                      WHERE inhparent = '{parent}'::regclass AND relname = '{parent}_p' || to_char(month, 'YYYY_MM'))
    ORDER BY month
"""
SUMMARIZE_BRIN_INDEXES = """
    SELECT brin_summarize_new_values(indexrelid)
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
    WHERE amname = 'brin' AND indrelid = ANY (CAST(:tables AS regclass[]))
"""
# Rows that a snapshot with this xmin may not have seen. It saw all rows of older transactions.
NEWER_THAN = "age(xmin) <= age('{xmin}'::xid8::xid)"


class RowsDeleted(Exception):
    """Rows were deleted from the default after they were copied, so the copy is out of date."""


def drain(connection: Any, parent: str, ahead: int) -> Record:
    """Create the partitions for the default's rows and for `ahead` months, and move the rows. Raise ClickException.

    Return the names `created`, the number of rows `drained`, and `held_ms`: how long writers were blocked.
    """
    _drop_unattached(connection)  # left by a run that was killed
    for _ in range(3):  # only rows deleted by hand during the copy make a second attempt necessary
        try:
            return _drain_once(connection, parent, ahead)
        except RowsDeleted:
            continue
    raise click.ClickException(f"rows of {parent}_default are deleted meanwhile: nothing was changed, try later")


def _drain_once(connection: Any, parent: str, ahead: int) -> Record:
    default = f"{parent}_default"
    months = query(connection, MISSING_MONTHS.format(parent=parent, column=TIME_COLUMNS[parent], ahead=ahead))
    if not months:
        return {"created": [], "drained": 0, "held_ms": 0.0}
    keys = query(connection, FOREIGN_KEYS, parent=parent)
    # An autovacuum of the default would hold its lock for longer than lock_timeout.
    connection.run(f"ALTER TABLE {default} SET (autovacuum_enabled = off)")
    try:
        copied, xmin = _build(connection, parent, months, keys)
        drained, blocked_ms = retry_until_locked(connection, _swap, connection, parent, months, keys, copied, xmin)
        tables = [month["table"] for month in months]
        # The copied rows are in order of arrival, so block ranges describe them as well as in the default.
        connection.run(SUMMARIZE_BRIN_INDEXES, tables=tables)
        return {"created": tables, "drained": drained, "held_ms": round(blocked_ms, 1)}
    finally:
        connection.run(f"ALTER TABLE {default} RESET (autovacuum_enabled)")
        _drop_unattached(connection)


def _build(connection: Any, parent: str, months: list[Record], keys: list[Record]) -> tuple[int, str]:
    """Create the months' tables with all constraints and copy the default's rows, until few new ones are left.

    Return how many rows were copied, and the xmin of a snapshot from before the last copy.
    """
    for month in months:
        # With the parent's indexes and a check that implies the bounds, attaching scans and builds nothing.
        check = f"CONSTRAINT partition_to_be CHECK ({month['condition']})"
        connection.run(f"CREATE TABLE {month['table']} (LIKE {parent} INCLUDING ALL, {check})")
    copied, xmin = _copy(connection, parent, months)
    for month in months:
        table = month["table"]
        for key in keys:
            add = f"ALTER TABLE {table} ADD CONSTRAINT {key['conname']} {key['definition']} NOT VALID"
            retry_until_locked(connection, connection.run, add)  # it locks the referenced table for an instant
            connection.run(f"ALTER TABLE {table} VALIDATE CONSTRAINT {key['conname']}")
        connection.run("SELECT pg_stat_force_next_flush()")  # else the copied rows are counted again after ANALYZE
        connection.run(f"ANALYZE {table}")
    for _ in range(10):
        more, xmin = _copy(connection, parent, months, since=xmin)
        copied += more
        if more <= MAX_ROWS_WHILE_BLOCKED:
            break
    return copied, xmin


def _drop_unattached(connection: Any) -> None:
    """Drop the tables that were to become partitions. Their rows are still in the default."""
    for table in query(connection, UNATTACHED_TABLES):
        connection.run(f"DROP TABLE {table['name']}")


def _copy(connection: Any, parent: str, months: list[Record], since: str | None = None) -> tuple[int, str]:
    """Copy the default's rows to the months' tables: all, or those newer than the snapshot with xmin `since`.

    Return how many were copied, and the xmin of a snapshot from before the copy.
    """
    ((xmin,),) = connection.run("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
    newer = f"AND {NEWER_THAN.format(xmin=since)}" if since else ""
    copied = 0
    for month in months:
        rows = f"SELECT * FROM {parent}_default WHERE {month['condition']} {newer}"
        connection.run(f"INSERT INTO {month['table']} {rows} ON CONFLICT DO NOTHING")
        copied += connection.row_count
    return copied, xmin


def _swap(
    connection: Any, parent: str, months: list[Record], keys: list[Record], copied: int, xmin: str
) -> tuple[int, float]:
    """Replace the default's rows by the months' tables; return how many moved, and for how many ms writers waited.

    Raise RowsDeleted, and change nothing, when rows were deleted from the default after they were copied.
    """
    default = f"{parent}_default"
    started = time.monotonic()
    with transaction(connection):
        # The parent first: an insert that had passed it would wait at the default, then meet changed constraints.
        tables = ", ".join([*(key["target"] for key in keys), f"ONLY {parent}"])
        connection.run(f"LOCK TABLE {tables} IN SHARE ROW EXCLUSIVE MODE")
        connection.run(f"LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE")
        late = f"SELECT * FROM {default} WHERE {NEWER_THAN.format(xmin=xmin)}"
        connection.run(f"CREATE TEMP TABLE late ON COMMIT DROP AS {late}")
        ((total,),) = connection.run(f"SELECT count(*) FROM {default}")
        connection.run(f"TRUNCATE {default}")
        for month in months:
            connection.run(f"ALTER TABLE {parent} ATTACH PARTITION {month['table']} FOR VALUES {month['bounds']}")
            connection.run(f"ALTER TABLE {month['table']} DROP CONSTRAINT partition_to_be")
        connection.run(f"INSERT INTO {parent} SELECT * FROM late ON CONFLICT DO NOTHING")
        if copied + connection.row_count != total:
            raise RowsDeleted
        ((left,),) = connection.run(f"SELECT count(*) FROM {default}")
    return total - left, (time.monotonic() - started) * 1000
