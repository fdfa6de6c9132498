"""`metrics-ingest summaries`: refresh session_summary, user_day_summary and type_hour_summary."""

import time
from collections import Counter
from typing import Any

import click
from pg8000.native import DatabaseError

from metrics_ingest.admin.console import JSON_OPTION, Record, print_record, print_rows
from metrics_ingest.admin.database import open_connection, query, transaction
from metrics_ingest.storage.driver import reason_of

STATE = """
    SELECT refreshed_at, now() - refreshed_at AS age, NULLIF(raw_since, '-infinity') AS metrics_kept_since,
           (SELECT count(*) FROM summary_repairs) AS hours_to_repair FROM summary_state
"""
# After a refresh that took a second, wait four: it leaves most of the time to others.
PAUSE_PER_REFRESH = 4
MERGE_LAST_MS = 1_000
# Fewer than 1e18 values below this cannot add up to more than a float8 holds.
FAULTY_TYPES = """
    SELECT DISTINCT metric_type FROM type_hour_rollup WHERE greatest(abs(lowest), abs(highest)) > 1e290
"""
FAULTY = """
    SELECT '{summary}' AS summary, metric_type, count(*) AS rows, min(first_at) AS first_metric_at
    FROM {rollup} WHERE metric_type = ANY (CAST(:names AS text[])) AND total IN ('Infinity', '-Infinity', 'NaN')
    GROUP BY metric_type ORDER BY metric_type
"""
ROLLUPS = {
    "session_summary": "session_rollup",
    "user_day_summary": "user_day_rollup",
    "type_hour_summary": "type_hour_rollup",
}


@click.group()
def command() -> None:
    """Refresh the views session_summary, user_day_summary and type_hour_summary, for psql and dashboards."""


@command.command("refresh", short_help="Add new metrics to the summaries.")
@click.option("--every", type=click.FloatRange(0.1), metavar="SECONDS", help="Go on and on; print nothing.")
@JSON_OPTION
def refresh_command(every: float | None, as_json: bool) -> None:
    """Add new metrics to the summaries, late metrics included; show how many rows of the summaries changed.

    Run it every minute or so, or with --every as a service. Ingestion continues meanwhile. It works in steps of at most
    200,000 metrics, each committed: two refreshes at once take turns, and after an interruption the next one
    continues.
    """
    with open_connection() as connection:
        if every is None:
            print_record(refresh(connection), as_json=as_json, title="refreshed")
        while every is not None:
            began = time.monotonic()
            refresh(connection)
            # At least four fifths of the time without a refresh, so that a slow one does not keep the database busy.
            time.sleep(max(every, PAUSE_PER_REFRESH * (time.monotonic() - began)))


def refresh(connection: Any) -> Record:
    """Refresh the summaries in committed steps; return the counts of refresh_summaries. Raise pg8000's errors."""
    counts: Counter[str] = Counter(metrics=0, sessions=0, user_days=0, type_hours=0)
    after: int | None = 0
    while after is not None:
        with transaction(connection, "ISOLATION LEVEL READ COMMITTED"):
            ((step,),) = connection.run("SELECT refresh_summaries_step(:after)", after=after)
        after = step.pop("next")
        counts.update(step)
    return dict(counts)


def refresh_before_drop(connection: Any) -> None:
    """Refresh the summaries before metrics are dropped. Only warn when that fails: retention does not depend on it."""
    try:
        refresh(connection)
    except DatabaseError as error:
        _warn(error)


def merge_last(connection: Any) -> None:
    """Merge what was stored since refresh_before_drop, in a transaction that has locked tables and SUMMARIES_LOCK.

    Writers wait for it, so it gives up after MERGE_LAST_MS, as after an error.
    """
    ((timeout,),) = connection.run("SELECT current_setting('statement_timeout')")
    connection.run("SAVEPOINT summaries")
    try:
        connection.run(f"SET LOCAL statement_timeout = {MERGE_LAST_MS}")
        connection.run("SELECT refresh_summaries()")
        connection.run(f"SET LOCAL statement_timeout = '{timeout}'")
    except DatabaseError as error:
        connection.run("ROLLBACK TO SAVEPOINT summaries")
        _warn(error)


def _warn(error: DatabaseError) -> None:
    click.echo(f"warning: the dropped metrics may be missing in the summaries: {reason_of(error)}", err=True)


@command.command(short_help="Show how old the summaries are.")
@JSON_OPTION
def status(as_json: bool) -> None:
    """Show when the summaries were refreshed, and how many hours are still to be recomputed after an erasure.

    `faulty` are the rows whose sum is too large for a float8: there it is Infinity or -Infinity.
    """
    with open_connection() as connection:
        (state,) = query(connection, STATE)
        names = [name for (name,) in connection.run(FAULTY_TYPES)]
        faulty = [
            row
            for summary, rollup in ROLLUPS.items()
            if names
            for row in query(connection, FAULTY.format(summary=summary, rollup=rollup), names=names)
        ]
    if as_json:
        print_record(state | {"faulty": faulty}, as_json=True, title="summaries")
        return
    state["refreshed_at"] = state["refreshed_at"] or "never; run `metrics-ingest summaries refresh`"
    print_record(state | {"faulty": sum(row["rows"] for row in faulty)}, as_json=False, title="summaries")
    if faulty:
        print_rows(faulty, as_json=False, title="faulty rows")
