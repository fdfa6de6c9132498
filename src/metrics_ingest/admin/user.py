"""`metrics-ingest user`: show what is stored about a user, and erase all of it. users.py has the other commands."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import click
from pg8000.native import DatabaseError

from metrics_ingest.admin import database, users
from metrics_ingest.admin.console import JSON_OPTION, Record, confirm, print_record, print_rows
from metrics_ingest.storage.driver import sqlstate

STEP = 10_000  # rows that one transaction erases
STRAGGLERS_S = 60.0  # how long an erasure waits for transactions that began before it
FOREIGN_KEY_VIOLATION = "23503"
# The plans must not depend on statistics, which autovacuum does not keep for partitioned tables. Nor must those of the
# foreign keys' checks: without bitmap scans, erased metrics are looked at once, and not for each session.
PLANNED_WITHOUT_STATISTICS = """
    SET LOCAL enable_seqscan = off;
    SET LOCAL enable_hashjoin = off;
    SET LOCAL enable_mergejoin = off;
    SET LOCAL enable_bitmapscan = off
"""

# `named_ids` has the UUIDs of what the functions kept. The text is searched as well, for rows stored by other means.
NAMES_USER = """(CAST(:user_id AS uuid) = ANY (named_ids)
    OR translate(lower(encode(payload, 'escape') || detail), '-', '') LIKE '%' || CAST(:hex AS text) || '%')"""
USER = f"""
    SELECT CAST(:user_id AS uuid) AS user_id, (SELECT name FROM users WHERE user_id = :user_id) AS name,
           (SELECT email FROM users WHERE user_id = :user_id) AS email,
           (SELECT created_at FROM users WHERE user_id = :user_id) AS created_at,
           (SELECT count(*) FROM sessions WHERE user_id = :user_id) AS sessions,
           (SELECT count(*) FROM metrics WHERE user_id = :user_id) AS metrics,
           (SELECT min(timestamp) FROM metrics WHERE user_id = :user_id) AS first_metric_at,
           (SELECT max(timestamp) FROM metrics WHERE user_id = :user_id) AS last_metric_at,
           (SELECT count(*) FROM rejected_metrics WHERE {NAMES_USER}) AS rejected_metrics
"""
METRICS_BY_TYPE = """
    SELECT metric_type, count(*) AS metrics, min(timestamp) AS first_metric_at, max(timestamp) AS last_metric_at
    FROM metrics WHERE user_id = :user_id GROUP BY metric_type ORDER BY metric_type
"""
UNDER_WAY = "SELECT FROM user_erasures WHERE user_id = :user_id"
# From here on, the user's metrics are rejected, and nothing that names the user is kept.
BEGIN_ERASURE = (
    "INSERT INTO user_erasures (user_id) VALUES (CAST(:user_id AS uuid)) ON CONFLICT DO NOTHING",
    """INSERT INTO forgotten_users (user_digest) VALUES (sha256(uuid_send(CAST(:user_id AS uuid))))
       ON CONFLICT DO NOTHING""",
)
END_ERASURE = "DELETE FROM user_erasures WHERE user_id = :user_id"

STEP_END = """
    SELECT timestamp, metric_id FROM metrics WHERE user_id = :user_id
    ORDER BY timestamp, metric_id OFFSET :step - 1 LIMIT 1
"""
UP_TO = """
    FROM metrics WHERE user_id = :user_id
        AND (timestamp, metric_id) <= (CAST(:end_timestamp AS timestamptz), CAST(:end_id AS uuid))
"""
# The next refresh of the summaries recomputes the hours that these metrics were in. A metric that is stored between the
# two statements is not in the summaries, because a refresh waits.
REPAIR_HOURS = f"""
    INSERT INTO summary_repairs (metric_type, hour)
    SELECT DISTINCT metric_type, date_trunc('hour', timestamp) {UP_TO} ON CONFLICT DO NOTHING
"""  # made of constants of this module only
ERASE_METRICS = f"DELETE {UP_TO}"
LAST_METRIC = ("infinity", UUID(int=2**128 - 1))
ERASE = """
    DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {condition} LIMIT :step) AND {condition}
"""
OF_USER = "user_id = :user_id"
# What is erased after the metrics, in this order: table, key, condition. The names appear in the output.
REST = {
    "session_summaries": ("session_rollup", "user_id, session_id, metric_type", OF_USER),
    "user_day_summaries": ("user_day_rollup", "user_id, day, metric_type", OF_USER),
    "sessions": ("sessions", "user_id, session_id", OF_USER),
    "users": ("users", "user_id", OF_USER),
    "rejected_metrics": ("rejected_metrics", "received_at, rejected_id", NAMES_USER),
}
LEFT = " UNION ALL ".join(
    f"SELECT '{table}' AS table, count(*) AS rows FROM {table} WHERE {condition}"
    for table, _, condition in (("metrics", "", OF_USER), *REST.values())
)


@click.group()
def command() -> None:
    """Register, list and export users; show what is stored about one, or erase it."""


for subcommand in (users.add, users.export, users.list_users, users.load):
    command.add_command(subcommand)


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

    From its start the user's metrics are rejected, and what names the user is not kept. It ends with a count that shows
    that nothing is left. If it is interrupted, run it again: it continues. Backups, and partitions detached by
    `partitions maintain`, are not changed.
    """
    with database.open_connection() as connection:
        user = _find(connection, user_id)
        if not yes:
            who = user["name"] or user_id
            confirm(f"Erase {who} with {user['metrics']:,} metrics, for good?")
        with database.transaction(connection):
            for statement in BEGIN_ERASURE:
                connection.run(statement, user_id=user_id)
        erased: Counter[str] = Counter(dict.fromkeys(("metrics", *REST), 0))
        deadline = time.monotonic() + STRAGGLERS_S
        while not _erase(connection, user_id, erased):
            if time.monotonic() > deadline:
                raise click.ClickException(
                    "transactions that began before the erasure are still open: run it again when they have ended"
                )
            time.sleep(0.1)  # the database cannot signal the end of another session's transaction
        connection.run(END_ERASURE, user_id=user_id)
        print_record(dict(erased), as_json=as_json, title="erased")


def _find(connection: Any, user_id: UUID) -> Record:
    """Return what is stored about a user; the name is None when only remains are. Raise ClickException for nothing."""
    (user,) = database.query(connection, USER, user_id=user_id, hex=user_id.hex)
    if user["name"] is None and not user["rejected_metrics"] and not connection.run(UNDER_WAY, user_id=user_id):
        raise click.ClickException(f"there is no user {user_id}")
    return user


def _erase(connection: Any, user_id: UUID, erased: Counter[str]) -> bool:
    """Erase everything in steps and add to the counts; return whether nothing is left and nothing can come any more.

    A transaction that began before the erasure may have stored metrics meanwhile: then the keys of sessions and users
    refer to them.
    """
    values = {"user_id": user_id, "hex": user_id.hex}
    try:
        while count := _erase_step(connection, _erase_metrics, user_id):
            erased["metrics"] += count
        for what, (table, key, condition) in REST.items():
            sql = ERASE.format(table=table, key=key, condition=condition)
            used = {name: value for name, value in values.items() if f":{name}" in sql}
            while count := _erase_step(connection, _run_step, sql, used):
                erased[what] += count
    except DatabaseError as error:
        if sqlstate(error) in (FOREIGN_KEY_VIOLATION, database.DEADLOCK):
            return False
        raise
    if not connection.run("SELECT writers_ended('rejected_metrics')")[0][0]:
        return False
    return not any(rows for _, rows in connection.run(LEFT, **values))


def _erase_step(connection: Any, action: Callable[..., int], *arguments: Any) -> int:
    """Run one step in a transaction, which neither a drain nor a refresh of the summaries can undo."""
    with database.transaction(connection):
        database.advisory_lock(connection, database.PARTITIONS_LOCK, until_commit=True)
        database.advisory_lock(connection, database.SUMMARIES_LOCK, until_commit=True)
        connection.run(PLANNED_WITHOUT_STATISTICS)
        return action(connection, *arguments)


def _erase_metrics(connection: Any, user_id: UUID) -> int:
    """Erase the user's next metrics, at most STEP; return how many."""
    end = connection.run(STEP_END, user_id=user_id, step=STEP)
    timestamp, metric_id = end[0] if end else LAST_METRIC
    for statement in (REPAIR_HOURS, ERASE_METRICS):
        connection.run(statement, user_id=user_id, end_timestamp=timestamp, end_id=metric_id)
    return int(connection.row_count)


def _run_step(connection: Any, sql: str, values: Record) -> int:
    connection.run(sql, step=STEP, **values)
    return int(connection.row_count)
