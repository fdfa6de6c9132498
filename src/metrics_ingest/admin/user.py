"""`metrics-ingest user`: show what is stored about a user, and erase all of it."""

from typing import Any
from uuid import UUID

import click
from pg8000.native import DatabaseError

from metrics_ingest.admin import database
from metrics_ingest.admin.console import JSON_OPTION, Record, print_record, print_rows
from metrics_ingest.storage.driver import sqlstate

BATCH = 10_000
FOREIGN_KEY_VIOLATION = "23503"

# A payload may spell a UUID in any accepted way: with capitals, braces, urn:uuid: or without hyphens.
NAMES_USER = "translate(lower(encode(payload, 'escape')), '-', '') LIKE '%' || CAST(:hex AS text) || '%'"
USER = f"""
    SELECT user_id, name, email, created_at,
           (SELECT count(*) FROM sessions WHERE user_id = :user_id) AS sessions,
           (SELECT count(*) FROM metrics WHERE user_id = :user_id) AS metrics,
           (SELECT min(timestamp) FROM metrics WHERE user_id = :user_id) AS first_metric_at,
           (SELECT max(timestamp) FROM metrics WHERE user_id = :user_id) AS last_metric_at,
           (SELECT count(*) FROM rejected_metrics WHERE {NAMES_USER}) AS rejected_metrics
    FROM users WHERE user_id = :user_id
"""
METRICS_BY_TYPE = """
    SELECT metric_type, count(*) AS metrics, min(timestamp) AS first_metric_at, max(timestamp) AS last_metric_at
    FROM metrics WHERE user_id = :user_id GROUP BY metric_type ORDER BY metric_type
"""
# The next refresh of the summaries recomputes the hours that these metrics were in.
ERASE_METRICS = f"""
    WITH erased AS (
        DELETE FROM metrics WHERE (user_id, timestamp, metric_id) IN
            (SELECT user_id, timestamp, metric_id FROM metrics WHERE user_id = :user_id LIMIT {BATCH})
            AND user_id = :user_id
        RETURNING metric_type, timestamp),
    repairs AS (
        INSERT INTO summary_repairs (metric_type, hour)
        SELECT DISTINCT metric_type, date_trunc('hour', timestamp) FROM erased
        ON CONFLICT DO NOTHING)
    SELECT count(*) FROM erased
"""
ERASE_REJECTED = f"""
    WITH erased AS (
        DELETE FROM rejected_metrics WHERE (received_at, rejected_id) IN
            (SELECT received_at, rejected_id FROM rejected_metrics WHERE {NAMES_USER} LIMIT {BATCH})
        RETURNING 1)
    SELECT count(*) FROM erased
"""
# One transaction, the user last. The keys appear in the output.
ERASE_USER = {
    "session_summaries": "DELETE FROM session_rollup WHERE user_id = :user_id",
    "user_day_summaries": "DELETE FROM user_day_rollup WHERE user_id = :user_id",
    "sessions": "DELETE FROM sessions WHERE user_id = :user_id",
    "users": "DELETE FROM users WHERE user_id = :user_id",
}


@click.group()
def command() -> None:
    """Show what is stored about a user, or erase it."""


@command.command("show", short_help="Show what is stored about a user.")
@click.argument("user_id", type=click.UUID)
@JSON_OPTION
def show_user(user_id: UUID, as_json: bool) -> None:
    """Show what is stored about a user. `metrics-ingest export --user USER_ID` writes the metrics themselves."""
    with database.open_connection() as connection:
        user = _find(connection, user_id)
        by_type = database.query(connection, METRICS_BY_TYPE, user_id=user_id)
    print_record(user | {"metric_types": by_type} if as_json else user, as_json=as_json, title="user")
    if not as_json:
        print_rows(by_type, as_json=False, title="metrics")


@command.command(short_help="Erase a user and everything stored about it.")
@click.argument("user_id", type=click.UUID)
@click.option("--yes", is_flag=True, help="Do not ask before erasing.")
@JSON_OPTION
def forget(user_id: UUID, yes: bool, as_json: bool) -> None:
    """Erase a user with all sessions, metrics, summaries and rejected metrics; print how many of each.

    If it is interrupted, run it again. Backups, and partitions detached by `partitions maintain`, are not changed.
    """
    with database.open_connection() as connection:
        user = _find(connection, user_id)
        if not yes:
            click.confirm(f"Erase {user['name']} with {user['metrics']:,} metrics, for good?", abort=True, err=True)
        # A drain under way would restore erased rows from its copy.
        database.advisory_lock(connection, database.PARTITIONS_LOCK)
        metrics = _erase_in_batches(connection, ERASE_METRICS, user_id=user_id)
        while (rest := _erase_user(connection, user_id)) is None:
            metrics += _erase_in_batches(connection, ERASE_METRICS, user_id=user_id)
        rejected = _erase_in_batches(connection, ERASE_REJECTED, hex=user_id.hex)
        print_record({"metrics": metrics, "rejected_metrics": rejected} | rest, as_json=as_json, title="erased")


def _find(connection: Any, user_id: UUID) -> Record:
    found = database.query(connection, USER, user_id=user_id, hex=user_id.hex)
    if not found:
        raise click.ClickException(f"there is no user {user_id}")
    return found[0]


def _erase_in_batches(connection: Any, sql: str, **values: Any) -> int:
    """Run the statement, one transaction each time, until it erases nothing; return how many rows it erased."""
    total = 0
    while count := connection.run(sql, **values)[0][0]:
        total += count
    return total


def _erase_user(connection: Any, user_id: UUID) -> dict[str, int] | None:
    """Erase the summaries, sessions and user; return how many of each, or None when new metrics have arrived."""
    erased = {}
    try:
        with database.transaction(connection):
            # A refresh under way could write the summaries again.
            database.advisory_lock(connection, database.SUMMARIES_LOCK, until_commit=True)
            for what, sql in ERASE_USER.items():
                connection.run(sql, user_id=user_id)
                erased[what] = connection.row_count
    except DatabaseError as error:
        # A session has metrics again, or the ingestion of one and this transaction waited for each other.
        if sqlstate(error) in (FOREIGN_KEY_VIOLATION, database.DEADLOCK):
            return None
        raise
    return erased
