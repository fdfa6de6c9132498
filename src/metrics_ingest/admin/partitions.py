"""`metrics-ingest partitions`: create monthly partitions ahead, empty the default partitions, drop old months."""

import re
from datetime import timedelta
from functools import partial
from itertools import chain, count
from typing import Any

import click

from metrics_ingest.admin import database, distributed, summaries
from metrics_ingest.admin.catalog import (
    CONTAINS,
    END_BY_NAME,
    FOREIGN_KEYS,
    IS_PARTITION,
    OLD,
    PARTITIONS,
    STRAY_TABLES,
    TIME_COLUMNS,
)
from metrics_ingest.admin.console import JSON_OPTION, Record, confirm, print_rows
from metrics_ingest.admin.drain import drain

LIST_COLUMNS = ("partition", "from", "to", "rows", "bytes")  # what fits 80 characters
UNITS = {"d": "days", "mo": "months", "y": "years"}


@click.group()
def command() -> None:
    """List and maintain the partitions of the tables `metrics` and `rejected_metrics`.

    Each has a partition for each month (UTC), and a default partition for the rows of all other months.
    """


@command.command("list", short_help="List the partitions with their size.")
@JSON_OPTION
def list_partitions(as_json: bool) -> None:
    """List the partitions with their range, rows and size. Rows are estimated, except in default partitions."""
    with database.open_connection() as connection:
        partitions = database.query(connection, PARTITIONS)
        strays = [row for parent in TIME_COLUMNS for row in database.query(connection, STRAY_TABLES, parent=parent)]
        for row in partitions:
            if distributed.is_distributed(connection, row["partition"]):
                row |= distributed.measure(connection, row["partition"])
        defaults = [row for row in partitions if row["from"] is None]
        for row in defaults:
            row["rows"] = connection.run(f"SELECT count(*) FROM {row['partition']}")[0][0]
    print_rows(partitions, as_json=as_json, title="partitions", columns=LIST_COLUMNS)
    for row in filter(lambda row: row["rows"], defaults):
        warning = f"warning: {row['rows']:,} rows are in {row['partition']}; `partitions maintain` moves them"
        click.echo(warning, err=True)
    for row in strays:
        click.echo(f"warning: {row['relname']} has the name of a month, but is no partition", err=True)


def _interval(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    """Convert 90d, 24mo or 2y to a PostgreSQL interval. Raise click.BadParameter for other text."""
    found = re.fullmatch(r"([1-9][0-9]{0,3})(d|mo|y)", text) if text else None
    if text and not found:
        raise click.BadParameter("give an age like 90d, 24mo or 2y")
    return f"{found[1]} {UNITS[found[2]]}" if found else None


@command.command(short_help="Create months ahead, empty the default, drop old months.")
@click.option("--ahead", default=3, show_default=True, type=click.IntRange(0, 120), help="Months to create ahead.")
@click.option("--keep", callback=_interval, metavar="AGE", help="Drop older metrics: 90d, 24mo, 2y. [default: none]")
@click.option("--keep-rejected", callback=_interval, metavar="AGE", default="3mo", show_default=True,
              help="Drop older rejected metrics.")  # fmt: skip
@click.option("--detach", is_flag=True, help="Keep old partitions as separate tables, named …_detached.")
@click.option("--yes", is_flag=True, help="Do not ask before metrics are dropped.")
@JSON_OPTION
def maintain(ahead: int, keep: str | None, keep_rejected: str, detach: bool, yes: bool, as_json: bool) -> None:
    """Create the months ahead, empty the default partitions, and drop months that are older than --keep as a whole.

    Their summaries stay. Run it daily: ingestion continues, and two runs take turns. In the output, `drained` is the
    number of rows moved out of the default, and `held_ms` how long writers were blocked at most, in milliseconds.
    """
    with database.open_connection() as connection:
        results = []
        for parent, age in (("metrics", keep), ("rejected_metrics", keep_rejected)):
            drained = drain(connection, parent, ahead)
            do_not_ask = yes or parent == "rejected_metrics"  # its age has a documented default
            dropped = _drop_old(connection, parent, age, detach=detach, yes=do_not_ask) if age else []
            if parent == "rejected_metrics":
                connection.run("DELETE FROM rejected_counts WHERE day < now() - CAST(:age AS interval)", age=age)
            results.append({"table": parent} | drained | {"detached" if detach else "dropped": dropped})
            # Autovacuum never analyses a partitioned table, and without this plans over all months are guesses.
            connection.run(f"ANALYZE (SKIP_LOCKED) {parent}")
    print_rows(results, as_json=as_json, title="tables maintained")


def _drop_old(connection: Any, parent: str, age: str, *, detach: bool, yes: bool) -> list[str]:
    """Drop, or detach, the partitions whose rows are all older than `age`; return their names.

    No lock is held while it asks.
    """
    old = database.query(connection, OLD, parent=parent, age=age)
    if old and not yes:
        rows = sum(row["rows"] for row in old)
        what = f"{', '.join(row['partition'] for row in old)}, with about {rows:,} rows before {old[-1]['to']:%Y-%m-%d}"
        confirm(f"{'Detach' if detach else 'Drop'} {what}?")
    if old and parent == "metrics":
        summaries.refresh_before_drop(connection)
    keys = database.query(connection, FOREIGN_KEYS, parent=parent)
    removed = []
    for row in old:
        name = row["partition"]
        locked = [*(key["target"] for key in keys), parent, f"{parent}_default", name]
        if database.with_table_locks(connection, partial(_remove, connection, row, age, keys, detach), *locked):
            removed.append(name)
    return removed


def _remove(connection: Any, row: Record, age: str, keys: list[Record], detach: bool, wait_ms: int) -> bool:
    """Drop or detach one partition. Return False when it is no partition any more, or not surely older than `age`."""
    parent, name = row["table"], row["partition"]
    tables = ", ".join([*(key["target"] for key in keys), f"ONLY {parent}", f"{parent}_default", name])
    with database.transaction(connection, lock_timeout_ms=wait_ms):
        database.advisory_lock(connection, database.PARTITIONS_LOCK, until_commit=True)
        if not database.query(connection, IS_PARTITION, parent=parent, partition=name):
            return False
        if not _is_older(connection, row, age):
            click.echo(f"warning: {name} was not dropped: its name and its bounds do not agree on its month", err=True)
            return False
        database.advisory_lock(connection, database.SUMMARIES_LOCK, until_commit=True)
        connection.run(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
        if parent == "metrics":
            summaries.merge_last(connection)
        connection.run(f"ALTER TABLE {parent} DETACH PARTITION {name}")
        if parent == "metrics":
            newest = "UPDATE summary_state SET raw_since = greatest(raw_since, CAST(:to AS timestamptz))"
            connection.run(newest, to=row["to"])
        if not detach:
            connection.run(f"DROP TABLE {name}")
            return True
        if parent == "metrics":  # else it would depend on the sequence
            connection.run(f"ALTER TABLE {name} ALTER arrival DROP DEFAULT")
        for key in keys:  # a detached table must not prevent the erasure of a user
            connection.run(f"ALTER TABLE {name} DROP CONSTRAINT {key['conname']}")
        # Late metrics of a detached month make it again, so there may be several.
        names = chain([f"{name}_detached"], (f"{name}_detached_{number}" for number in count(2)))
        free = next(new for new in names if connection.run("SELECT WHERE to_regclass(:new) IS NULL", new=new))
        connection.run(f"ALTER TABLE {name} RENAME TO {free}")
    return True


def _is_older(connection: Any, row: Record, age: str) -> bool:
    """Whether the partition's name and its constraint agree with its bounds, and its month is older than `age`."""
    found = database.query(connection, END_BY_NAME, parent=row["table"], partition=row["partition"])
    if not found or found[0]["by_name"] != row["to"]:
        return False
    column = TIME_COLUMNS[row["table"]]
    contains = CONTAINS.format(constraint=found[0]["constraint"], column=column)
    ((limit,),) = connection.run("SELECT now() - CAST(:age AS interval)", age=age)
    moments = (row["to"] - timedelta(microseconds=1), row["to"], limit)
    contained = [connection.run(contains, moment=moment)[0][0] for moment in moments]
    return bool(row["to"] <= limit) and contained == [True, False, False]
