"""`metrics-ingest summaries`: refresh session_summary, user_day_summary and type_hour_summary."""

import time
from typing import Any

import click

from metrics_ingest.admin.console import JSON_OPTION, Record, print_record
from metrics_ingest.admin.database import open_connection, query

STATUS = """
    SELECT refreshed_at, now() - refreshed_at AS age, NULLIF(raw_since, '-infinity') AS metrics_kept_since,
           (SELECT count(*) FROM summary_repairs) AS hours_to_repair FROM summary_state
"""
# After a refresh that took a second, wait four: with many metrics each refresh reads those of the last ten minutes.
PAUSE_PER_REFRESH = 4


@click.group()
def command() -> None:
    """Refresh the views session_summary, user_day_summary and type_hour_summary, for psql and dashboards."""


@command.command(short_help="Add new metrics to the summaries.")
@click.option("--every", type=click.FloatRange(0.1), metavar="SECONDS", help="Go on and on; print nothing.")
@JSON_OPTION
def refresh(every: float | None, as_json: bool) -> None:
    """Recompute the rows of the summaries that new metrics belong to, late metrics included.

    Run it every minute or so, or with --every as a service. Ingestion continues meanwhile, and two refreshes at once
    run one after the other.
    """
    with open_connection() as connection:
        if every is None:
            print_record(_refresh(connection), as_json=as_json, title="recomputed")
        while every is not None:
            began = time.monotonic()
            _refresh(connection)
            time.sleep(max(every, PAUSE_PER_REFRESH * (time.monotonic() - began)))


def _refresh(connection: Any) -> Record:
    ((refreshed,),) = connection.run("SELECT refresh_summaries()")
    counts: Record = refreshed
    return counts


@command.command(short_help="Show how old the summaries are.")
@JSON_OPTION
def status(as_json: bool) -> None:
    """Show when the summaries were refreshed, and how many hours are still to be recomputed after an erasure."""
    with open_connection() as connection:
        record = query(connection, STATUS)[0]
        if record["refreshed_at"] is None and not as_json:
            record["refreshed_at"] = "never; run `metrics-ingest summaries refresh`"
        print_record(record, as_json=as_json, title="summaries")
