"""`metrics-ingest summaries`: refresh session_summary, user_day_summary and type_hour_summary."""

import click

from metrics_ingest.admin.console import JSON_OPTION, print_record
from metrics_ingest.admin.database import open_connection, query

STATUS = """
    SELECT refreshed_at, now() - refreshed_at AS age, NULLIF(raw_since, '-infinity') AS metrics_kept_since,
           (SELECT count(*) FROM summary_repairs) AS hours_to_repair FROM summary_state
"""


@click.group()
def command() -> None:
    """Refresh the views session_summary, user_day_summary and type_hour_summary, for psql and dashboards."""


@command.command(short_help="Add new metrics to the summaries.")
@JSON_OPTION
def refresh(as_json: bool) -> None:
    """Recompute the rows of the summaries that new metrics belong to, late metrics included.

    Run it every minute or so. Ingestion continues meanwhile, and two refreshes at once run one after the other.
    """
    with open_connection() as connection:
        ((refreshed,),) = connection.run("SELECT refresh_summaries()")
        print_record(refreshed, as_json=as_json, title="recomputed")


@command.command(short_help="Show how old the summaries are.")
@JSON_OPTION
def status(as_json: bool) -> None:
    """Show when the summaries were refreshed, and how many hours are still to be recomputed after an erasure."""
    with open_connection() as connection:
        print_record(query(connection, STATUS)[0], as_json=as_json, title="summaries")
