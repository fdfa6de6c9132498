"""`metrics-ingest partitions`: the months' tables, made ahead, drained into, and dropped when their time is over.

A row in the default partition keeps its month's partition from being attached, and must at every moment be seen and be
checked for duplicates, so it cannot leave the default before its month is there. Hence `fill`: rows are copied to
tables that are not attached yet while ingestion goes on; then, in one short transaction that holds writers off, what
came since is set aside, the default is truncated (it is all copied), the tables are attached with every constraint
proven before, and what was set aside is stored again. A reader sees each row once, before and after.
"""

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import pg8000.native

from metrics_ingest.admin.console import JSON_OPTION, Refused, Row, confirmed, connected, query, show
from metrics_ingest.storage.driver import sqlstate

TABLES = {"metrics": "timestamp", "rejected_metrics": "received_at"}
# Less than PostgreSQL's deadlock_timeout of a second: should ingestion and maintenance ever wait for each other, it is
# maintenance that gives up. It is also how long a request can be made to wait behind a lock that is not granted.
LOCK_TIMEOUT_MS = 200
LOCK_PATIENCE_S = 120.0
FEW = 2_000  # rows that may be left to the transaction that holds writers off
LOCK = "SELECT pg_advisory_lock(hashtext('metrics-ingest partitions'))"  # the one of create_metrics_partitions

PARTITIONS = """
    SELECT parent.relname AS table, child.relname AS partition,
           CAST(substring(bound.text FROM 'FROM \\(''([^'']+)''') AS timestamptz) AS from,
           CAST(substring(bound.text FROM 'TO \\(''([^'']+)''') AS timestamptz) AS to,
           pg_stat_get_live_tuples(child.oid) AS rows, pg_total_relation_size(child.oid) AS bytes
    FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid JOIN pg_class parent ON parent.oid = inhparent,
         LATERAL pg_get_expr(child.relpartbound, child.oid) AS bound (text)
    WHERE parent.relname IN ('metrics', 'rejected_metrics') AND parent.relkind = 'p'
    ORDER BY parent.relname, 3 NULLS LAST
"""
LEFTOVERS = """
    SELECT conrelid::regclass::text AS name FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
    WHERE conname = 'partition_to_be' AND NOT relispartition
"""
FOREIGN_KEYS = """
    SELECT conname, pg_get_constraintdef(oid) AS definition, confrelid::regclass::text AS target
    FROM pg_constraint WHERE conrelid = CAST(:parent AS regclass) AND contype = 'f'
"""
MISSING_MONTHS = """
    SELECT month::date::text AS from, (month + interval '1 month')::date::text AS to,
           '{parent}_p' || to_char(month, 'YYYY_MM') AS table
    FROM (SELECT DISTINCT date_trunc('month', {column}) FROM {parent}_default
          UNION SELECT date_trunc('month', now()) + make_interval(months => ahead)
          FROM generate_series(0, {ahead}) AS ahead) AS wanted (month)
    WHERE NOT EXISTS (SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                      WHERE inhparent = '{parent}'::regclass AND relname = '{parent}_p' || to_char(month, 'YYYY_MM'))
    ORDER BY month
"""
BRIN_INDEXES = """
    SELECT indexrelid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
    WHERE amname = 'brin' AND indrelid = ANY (CAST(:tables AS regclass[]))
"""
# Rows that a snapshot with this xmin may not have seen. A row of an older transaction was seen, for xmin only grows.
SINCE = "age(xmin) <= age('{mark}'::xid8::xid)"


@dataclass(slots=True)
class Filled:
    """What a fill did: partitions made, rows moved out of the default, and how long writers were held off."""

    created: list[str]
    drained: int
    held_ms: float


@click.group()
def command() -> None:
    """Make, list and drop the partitions of metrics and of rejected metrics: a table for each month, in UTC."""


@command.command("list")
@JSON_OPTION
def list_partitions(as_json: bool) -> None:
    """List partitions with their rows (estimated; those of a default are counted), size and range."""
    with connected() as connection:
        partitions = query(connection, PARTITIONS)
        waiting = []
        for row in partitions:
            if row["from"] is None:
                row["rows"] = connection.run(f"SELECT count(*) FROM {row['partition']}")[0][0]
                if row["rows"]:
                    waiting.append(row)
        show(partitions, as_json=as_json, title="partitions")
    for row in waiting:
        click.echo(
            f"warning: {row['rows']:,} rows are in {row['partition']}; `partitions maintain` moves them", err=True
        )


def _age(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    found = re.fullmatch(r"([1-9][0-9]{0,3})(d|mo|y)", text) if text else None
    if text and not found:
        raise click.BadParameter("say how long like 90d, 24mo or 2y")
    return f"{found[1]} {({'d': 'days', 'mo': 'months', 'y': 'years'})[found[2]]}" if found else None


@command.command()
@click.option(
    "--ahead", default=3, show_default=True, type=click.IntRange(0, 120), help="Months to make beyond this one."
)
@click.option("--keep", callback=_age, help="Drop metrics older than this: 24mo, 90d, 2y. [default: keep all]")
@click.option("--keep-rejected", callback=_age, default="3mo", show_default=True, help="The same for rejected metrics.")
@click.option("--detach", is_flag=True, help="Leave old partitions as tables of their own (…_detached), not dropped.")
@click.option("--yes", is_flag=True, help="Do not ask before dropping metrics.")
@JSON_OPTION
def maintain(ahead: int, keep: str | None, keep_rejected: str, detach: bool, yes: bool, as_json: bool) -> None:
    """Make the months ahead, move rows out of the default partitions, drop what is past its time.

    Run it daily. Ingestion goes on meanwhile; two at once take turns.
    """
    with connected() as connection:
        connection.run(LOCK)
        answers = []
        for parent, age in (("metrics", keep), ("rejected_metrics", keep_rejected)):
            filled = fill(connection, parent, ahead)
            asked = yes or parent == "rejected_metrics"  # it says that it keeps them for so long
            dropped = drop(connection, parent, age, detach=detach, yes=asked) if age else []
            answers.append(
                {"table": parent, "created": filled.created, "drained": filled.drained}
                | {"detached" if detach else "dropped": dropped, "held_ms": round(filled.held_ms, 1)}
            )
        show(answers, as_json=as_json, title="maintenance")


def fill(connection: Any, parent: str, ahead: int) -> Filled:
    """Make the partitions that the default's rows and the months ahead need, and move those rows. Raise Refused."""
    _clear(connection)  # after a run that was killed
    for _ in range(3):  # only rows deleted by hand during the copying make a second time necessary
        filled = _fill(connection, parent, ahead)
        if filled:
            return filled
    raise Refused(f"rows of {parent}_default vanish while they are being moved: nothing was changed, try again later")


def _fill(connection: Any, parent: str, ahead: int) -> Filled | None:
    default, column = f"{parent}_default", TABLES[parent]
    months = query(connection, MISSING_MONTHS.format(parent=parent, column=column, ahead=ahead))
    if not months:
        return Filled([], 0, 0.0)
    keys = query(connection, FOREIGN_KEYS, parent=parent)
    tables = [month["table"] for month in months]
    # A vacuum of the default would hold the swap up, and we never wait long enough for PostgreSQL to cancel it.
    connection.run(f"ALTER TABLE {default} SET (autovacuum_enabled = off)")
    connection.run(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
    try:
        for month in months:
            # With the parent's indexes and a check that implies its bounds, attaching scans and builds nothing.
            within = f"{column} >= '{month['from']}Z' AND {column} < '{month['to']}Z'"
            like = f"LIKE {parent} INCLUDING ALL"
            connection.run(f"CREATE TABLE {month['table']} ({like}, CONSTRAINT partition_to_be CHECK ({within}))")
        copied, mark = _copy(connection, parent, months)
        for table in tables:
            for key in keys:
                add = f"ALTER TABLE {table} ADD CONSTRAINT {key['conname']} {key['definition']} NOT VALID"
                _patiently(connection.run, add)  # it locks the key's target for an instant
                connection.run(f"ALTER TABLE {table} VALIDATE CONSTRAINT {key['conname']}")
            connection.run("SELECT pg_stat_force_next_flush()")  # or the rows copied count a second time, later
            connection.run(f"ANALYZE {table}")
        for _ in range(10):
            more, mark = _copy(connection, parent, months, since=mark)
            copied += more
            if more <= FEW:
                break
        drained, held_ms = _patiently(_swap, connection, parent, months, [key["target"] for key in keys], copied, mark)
        if drained is None:
            return None
        # What was copied stands in the order of arrival: block ranges describe it as well as in the default.
        for (index,) in connection.run(BRIN_INDEXES, tables=tables):
            connection.run(f"SELECT brin_summarize_new_values({index})")
        return Filled(tables, drained, held_ms)
    finally:
        connection.run("RESET lock_timeout")
        connection.run(f"ALTER TABLE {default} RESET (autovacuum_enabled)")
        _clear(connection)


def _clear(connection: Any) -> None:
    """Drop tables that were to be partitions and are not: every row of theirs is still in the default."""
    for leftover in query(connection, LEFTOVERS):
        connection.run(f"DROP TABLE {leftover['name']}")


def _copy(connection: Any, parent: str, months: list[Row], since: str | None = None) -> tuple[int, str]:
    """Copy the default's rows to the months' tables, or only those new `since` a mark; return how many, and a mark."""
    ((mark,),) = connection.run("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
    copied = 0
    for month in months:
        connection.run(
            f"INSERT INTO {month['table']} SELECT * FROM {parent}_default "
            f"WHERE {TABLES[parent]} >= '{month['from']}Z' AND {TABLES[parent]} < '{month['to']}Z' "
            f"{'AND ' + SINCE.format(mark=since) if since else ''} ON CONFLICT DO NOTHING"
        )
        copied += connection.row_count
    return copied, mark


def _swap(
    connection: Any, parent: str, months: list[Row], targets: list[str], copied: int, mark: str
) -> tuple[int | None, float]:
    """Put the months' tables in the place of the default's rows; return how many moved, and how long writers waited.

    Moved is None, and nothing is changed, when rows have left the default since they were copied.
    """
    default = f"{parent}_default"
    started = time.monotonic()
    connection.run("BEGIN")
    try:
        # The parent first: an insert that got past it would come back from the default's lock to a changed constraint.
        connection.run(f"LOCK TABLE {', '.join([*targets, f'ONLY {parent}'])} IN SHARE ROW EXCLUSIVE MODE")
        connection.run(f"LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE")
        connection.run(
            f"CREATE TEMP TABLE late ON COMMIT DROP AS SELECT * FROM {default} WHERE {SINCE.format(mark=mark)}"
        )
        ((total,),) = connection.run(f"SELECT count(*) FROM {default}")
        connection.run(f"TRUNCATE {default}")
        for month in months:
            bounds = f"FROM ('{month['from']}T00:00:00Z') TO ('{month['to']}T00:00:00Z')"
            connection.run(
                f"ALTER TABLE {parent} ATTACH PARTITION {month['table']} FOR VALUES {bounds}; "
                f"ALTER TABLE {month['table']} DROP CONSTRAINT partition_to_be"
            )
        connection.run(f"INSERT INTO {parent} SELECT * FROM late ON CONFLICT DO NOTHING")
        stored = copied + connection.row_count
        ((left,),) = connection.run(f"SELECT count(*) FROM {default}")
        connection.run("COMMIT" if stored == total else "ROLLBACK")
    except BaseException:
        connection.run("ROLLBACK")
        raise
    return (total - left if stored == total else None), (time.monotonic() - started) * 1000


def _patiently(action: Callable[..., Any], *arguments: Any) -> Any:
    """Do it again until it gets its locks. Raise Refused after two minutes."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            return action(*arguments)
        except pg8000.native.DatabaseError as error:
            if sqlstate(error) not in ("55P03", "40P01"):  # lock not available, deadlock
                raise
            if time.monotonic() > deadline:
                raise Refused("a long transaction holds the tables; nothing was changed, try again later") from error
        time.sleep(random.uniform(0.05, 0.5))  # let through the writers that waited behind this one


def drop(connection: Any, parent: str, age: str, *, detach: bool, yes: bool) -> list[str]:
    """Drop, or detach, the partitions whose every row is older than `age`; return their names."""
    ((before,),) = connection.run("SELECT now() - CAST(:age AS interval)", age=age)
    old = [row for row in query(connection, PARTITIONS) if row["table"] == parent and row["to"] and row["to"] <= before]
    if not old:
        return []
    names = [row["partition"] for row in old]
    rows = sum(row["rows"] for row in old)
    done = "Detach" if detach else "Drop"
    confirmed(f"{done} {', '.join(names)}, with about {rows:,} rows before {old[-1]['to']:%Y-%m-%d}?", yes=yes)
    keys = query(connection, FOREIGN_KEYS, parent=parent)
    if parent == "metrics":
        connection.run("SELECT refresh_summaries()")  # the summaries outlive what they sum up
    connection.run(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
    for row in old:
        _patiently(_remove, connection, row, keys, detach)
    connection.run("RESET lock_timeout")
    return names


def _remove(connection: Any, row: Row, keys: list[Row], detach: bool) -> None:
    parent, name = row["table"], row["partition"]
    tables = ", ".join([*(key["target"] for key in keys), f"ONLY {parent}", f"{parent}_default", name])
    statements = [f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE", f"ALTER TABLE {parent} DETACH PARTITION {name}"]
    if parent == "metrics":
        statements.append(f"UPDATE summary_state SET raw_since = greatest(raw_since, '{row['to'].isoformat()}')")
    if detach:  # a table of its own, which must not keep users and sessions from being erased
        statements += [f"ALTER TABLE {name} DROP CONSTRAINT {key['conname']}" for key in keys]
        statements.append(f"ALTER TABLE {name} RENAME TO {name}_detached")
    else:
        statements.append(f"DROP TABLE {name}")
    connection.run("BEGIN")
    try:
        for statement in statements:
            connection.run(statement)
        connection.run("COMMIT")
    except BaseException:
        connection.run("ROLLBACK")
        raise
