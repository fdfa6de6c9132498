"""`metrics-ingest summaries`: bring session_summary, user_day_summary and type_hour_summary up to date."""

import click

from metrics_ingest.admin.console import JSON_OPTION, connected, query, show

STATUS = """
    SELECT refreshed_at, now() - refreshed_at AS age, NULLIF(raw_since, '-infinity') AS metrics_kept_since,
           (SELECT count(*) FROM summary_repairs) AS hours_to_repair FROM summary_state
"""


@click.group()
def command() -> None:
    """Keep the summaries of sessions, of users' days and of metric types' hours.

    They are views, for psql, Grafana or Metabase to read; docs/data-model.md shows how.
    """


@command.command()
@JSON_OPTION
def refresh(as_json: bool) -> None:
    """Count the buckets again that metrics have fallen into since the last time, however late those metrics are.

    Run it every minute or so. Ingestion goes on meanwhile; two at once take turns; doing it again changes nothing.
    """
    with connected() as connection:
        ((done,),) = connection.run("SELECT refresh_summaries()")
        show(done, as_json=as_json, title="refreshed")


@command.command()
@JSON_OPTION
def status(as_json: bool) -> None:
    """Tell how fresh the summaries are."""
    with connected() as connection:
        show(query(connection, STATUS)[0], as_json=as_json, title="summaries")
