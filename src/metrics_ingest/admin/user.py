"""`metrics-ingest user`: what is held of a user, and forgetting all of it."""

from typing import Any
from uuid import UUID

import click

from metrics_ingest.admin.console import JSON_OPTION, Refused, Row, confirmed, connected, query, show
from metrics_ingest.admin.partitions import LOCK
from metrics_ingest.storage.driver import sqlstate

BATCH = 10_000

# A payload may write a UUID in any of the ways that are understood: capitals, braces, urn:uuid:, without hyphens.
NAMES_USER = "translate(lower(encode(payload, 'escape')), '-', '') LIKE '%' || CAST(:hex AS text) || '%'"
HELD = f"""
    SELECT user_id, name, email, created_at,
           (SELECT count(*) FROM sessions WHERE user_id = :user_id) AS sessions,
           (SELECT count(*) FROM metrics WHERE user_id = :user_id) AS metrics,
           (SELECT min(timestamp) FROM metrics WHERE user_id = :user_id) AS first_metric_at,
           (SELECT max(timestamp) FROM metrics WHERE user_id = :user_id) AS last_metric_at,
           (SELECT count(*) FROM rejected_metrics WHERE {NAMES_USER}) AS rejected_metrics
    FROM users WHERE user_id = :user_id
"""
HELD_BY_TYPE = """
    SELECT metric_type, count(*) AS metrics, min(timestamp) AS first_metric_at, max(timestamp) AS last_metric_at
    FROM metrics WHERE user_id = :user_id GROUP BY metric_type ORDER BY metric_type
"""
# The hours that the metrics are missing from afterwards are counted again by the next refresh of the summaries.
FORGET_METRICS = f"""
    WITH gone AS (
        DELETE FROM metrics WHERE (user_id, timestamp, metric_id) IN
            (SELECT user_id, timestamp, metric_id FROM metrics WHERE user_id = :user_id LIMIT {BATCH})
            AND user_id = :user_id
        RETURNING metric_type, timestamp),
    repaired AS (
        INSERT INTO summary_repairs (metric_type, hour)
        SELECT DISTINCT metric_type, date_trunc('hour', timestamp) FROM gone
        ON CONFLICT DO NOTHING)
    SELECT count(*) FROM gone
"""
FORGET_REJECTED = f"""
    WITH gone AS (
        DELETE FROM rejected_metrics WHERE (received_at, rejected_id) IN
            (SELECT received_at, rejected_id FROM rejected_metrics WHERE {NAMES_USER} LIMIT {BATCH})
        RETURNING 1)
    SELECT count(*) FROM gone
"""
# The rest goes in one transaction, the user last. A refresh of the summaries must not be half-way meanwhile.
FORGET_USER = {
    "session_summaries": "DELETE FROM session_rollup WHERE user_id = :user_id",
    "user_day_summaries": "DELETE FROM user_day_rollup WHERE user_id = :user_id",
    "sessions": "DELETE FROM sessions WHERE user_id = :user_id",
    "users": "DELETE FROM users WHERE user_id = :user_id",
}
SUMMARIES_LOCK = "SELECT pg_advisory_xact_lock(hashtext('metrics-ingest summaries'))"


@click.group()
def command() -> None:
    """Show what is held of a user, or forget it."""


@command.command("show")
@click.argument("user_id", type=click.UUID)
@JSON_OPTION
def show_user(user_id: UUID, as_json: bool) -> None:
    """Show what is held of a user; `export --user` gives the metrics themselves."""
    with connected() as connection:
        held = _held(connection, user_id)
        by_type = query(connection, HELD_BY_TYPE, user_id=user_id)
        if as_json:
            show(held | {"metric_types": by_type}, as_json=True)
        else:
            show(held, as_json=False)
            show(by_type, as_json=False, title="metrics")


@command.command()
@click.argument("user_id", type=click.UUID)
@click.option("--yes", is_flag=True, help="Do not ask.")
@JSON_OPTION
def forget(user_id: UUID, yes: bool, as_json: bool) -> None:
    """Remove a user with all sessions, metrics, summaries and rejected payloads, and say what was removed.

    Interrupted, it can be run again. Backups and detached partitions are not reached from here.
    """
    with connected() as connection:
        held = _held(connection, user_id)
        confirmed(f"Remove {held['name']} with {held['metrics']:,} metrics, for good?", yes=yes)
        connection.run(LOCK)  # what is being moved to another partition would come back
        metrics = _batches(connection, FORGET_METRICS, user_id=user_id)
        while (rest := _forget_user(connection, user_id)) is None:
            metrics += _batches(connection, FORGET_METRICS, user_id=user_id)  # that came meanwhile
        rejected = _batches(connection, FORGET_REJECTED, hex=user_id.hex)
        show({"metrics": metrics, "rejected_metrics": rejected} | rest, as_json=as_json, title="removed")


def _held(connection: Any, user_id: UUID) -> Row:
    found = query(connection, HELD, user_id=user_id, hex=user_id.hex)
    if not found:
        raise Refused(f"there is no user {user_id}")
    return found[0]


def _batches(connection: Any, sql: str, **values: Any) -> int:
    """Run it until it removes nothing, each time in a transaction of its own; return how much it removed."""
    total = 0
    while count := connection.run(sql, **values)[0][0]:
        total += count
    return total


def _forget_user(connection: Any, user_id: UUID) -> dict[str, int] | None:
    """Remove what is left when the metrics are gone, and return how much; None when metrics have come since."""
    from pg8000.native import DatabaseError

    connection.run("BEGIN")
    try:
        connection.run(SUMMARIES_LOCK)
        removed = {}
        for what, sql in FORGET_USER.items():
            connection.run(sql, user_id=user_id)
            removed[what] = connection.row_count
        connection.run("COMMIT")
    except DatabaseError as error:
        connection.run("ROLLBACK")
        if sqlstate(error) in ("23503", "40P01"):  # a session has metrics still; a deadlock with their ingestion
            return None
        raise
    return removed
