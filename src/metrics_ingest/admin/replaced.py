"""A default partition that was replaced: it is detached and renamed, and dropped when it is proven to be empty."""

from typing import Any

import click

from metrics_ingest.admin import database
from metrics_ingest.admin.catalog import FOREIGN_KEYS
from metrics_ingest.admin.database import query, transaction, with_table_locks

RECORD = "metrics-ingest has replaced this default partition and will drop it"  # its comment
# Replacing relies on seeing the snapshots of all sessions, because an older one would find the rows nowhere.
IS_POSSIBLE = """
    SELECT WHERE pg_has_role('pg_read_all_stats', 'USAGE') AND to_regclass(:table) IS NULL
             AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')
"""
EXISTS = "SELECT WHERE obj_description(to_regclass(:table), 'pg_class') = :record"
COLUMNS = """
    SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
    WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped AND attname <> 'arrival'
"""


def _name(parent: str) -> str:
    return f"{parent}_default_old"


def is_possible(connection: Any, parent: str) -> bool:
    """Whether this role may replace the default of this table."""
    return bool(connection.run(IS_POSSIBLE, table=_name(parent)))


def detach(connection: Any, parent: str) -> None:
    """Make the default a table of its own, with a record that it can be dropped when it is empty."""
    connection.run(f"ALTER TABLE {parent} DETACH PARTITION {parent}_default")
    connection.run(f"ALTER TABLE {parent}_default RENAME TO {_name(parent)}")
    connection.run(f"COMMENT ON TABLE {_name(parent)} IS '{RECORD}'")


def drop(connection: Any, parent: str) -> int:
    """Drop the replaced default, if there is one; return how many rows were still in it, which are stored again.

    Such a row was inserted while the default was emptied, with a `received_at` from before.
    """
    table = _name(parent)
    if not connection.run(EXISTS, table=table, record=RECORD):
        return 0
    with transaction(connection):
        database.advisory_lock(connection, database.PARTITIONS_LOCK, until_commit=True)
        ((columns,),) = connection.run(COLUMNS, table=table)  # with a new arrival number, summaries take notice
        connection.run(f"INSERT INTO {parent} ({columns}) SELECT {columns} FROM {table} ON CONFLICT DO NOTHING")
        left = int(connection.row_count)
        connection.run(f"DELETE FROM {table}")

    def drop_table(wait_ms: int) -> None:
        with transaction(connection, lock_timeout_ms=wait_ms):
            connection.run(f"DROP TABLE IF EXISTS {table}")

    targets = {key["target"] for key in query(connection, FOREIGN_KEYS, parent=parent)}
    try:
        with_table_locks(connection, drop_table, *targets, table)
    except click.ClickException as error:
        click.echo(f"warning: {table}, which is empty now, was not dropped: {error}", err=True)
    return left
