"""`metrics-ingest rejected`: what the functions refused and kept (rejected.py), counted, listed, stored after all."""

import base64
from collections import Counter
from datetime import datetime
from typing import Any

import click

from metrics_ingest.admin.console import INSTANT, JSON_OPTION, Row, connected, query, show

BATCH = 1_000
SKEW_S = 86_400  # the functions' default MAX_FUTURE_SKEW_S

SUMMARY = """
    SELECT code, min(detail) AS example, route, key_name, count(*) AS rejected,
           min(received_at) AS first_at, max(received_at) AS last_at
    FROM rejected_metrics, unnest(codes) AS code {where}
    GROUP BY code, CASE WHEN code IN ('unknown_metric_type', 'unknown_field') THEN detail END, route, key_name
    ORDER BY rejected DESC, code
"""
LIST = """
    SELECT rejected_id, received_at, route, key_name, codes, detail, metric_id, payload, payload_bytes
    FROM rejected_metrics {where} ORDER BY received_at, rejected_id LIMIT {limit}
"""
# The rows that are being replayed stay locked until they are gone: a second replay passes them by.
NEXT = """
    SELECT rejected_id, received_at, codes, metric_id, payload, payload_bytes FROM rejected_metrics
    {where} AND (received_at, rejected_id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid))
    ORDER BY received_at, rejected_id LIMIT {limit} FOR UPDATE SKIP LOCKED
"""
DELETE = """
    DELETE FROM rejected_metrics USING unnest(CAST(:at AS timestamptz[]), CAST(:ids AS uuid[])) AS done (at, id)
    WHERE received_at = done.at AND rejected_id = done.id
"""


def selection(command: Any) -> Any:
    """The options that choose rejected metrics."""
    for option in (
        click.option("--since", type=INSTANT, help="Refused at or after this moment."),
        click.option("--code", help="With this error code."),
        click.option("--route", help="Sent to this function."),
        click.option("--key", "key_name", help="Sent with the API key of this name."),
    ):
        command = option(command)
    return command


def _where(since: datetime | None, code: str | None, route: str | None, key_name: str | None) -> str:
    from pg8000.native import literal

    conditions = {
        "received_at >= {}::timestamptz": since,
        "{} = ANY (codes)": code,
        "route = {}": route,
        "key_name = {}": key_name,
    }
    said = [text.format(literal(value)) for text, value in conditions.items() if value is not None]
    return f"WHERE {' AND '.join(said or ['true'])}"


@click.group()
def command() -> None:
    """Count, list and replay what ingest and ingest_batch refused.

    The functions keep it unless KEEP_REJECTED is false: 8 KiB of each, some each second, for three months.
    """


@command.command()
@selection
@JSON_OPTION
def summary(since: Any, code: Any, route: Any, key_name: Any, as_json: bool) -> None:
    """Count what was refused by code, function and key."""
    with connected() as connection:
        sql = SUMMARY.format(where=_where(since, code, route, key_name)).replace(
            "detail,", "min(detail) AS example,", 1
        )
        show(query(connection, sql), as_json=as_json, title="rejected metrics")


@command.command("list")
@selection
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1))
@JSON_OPTION
def list_rejected(since: Any, code: Any, route: Any, key_name: Any, limit: int, as_json: bool) -> None:
    """List what was refused, the oldest first."""
    with connected() as connection:
        rows = query(connection, LIST.format(where=_where(since, code, route, key_name), limit=limit))
        show([_legible(row) for row in rows], as_json=as_json, title="rejected metrics")


def _legible(row: Row) -> Row:
    """The payload as text where it is UTF-8 (with what a terminal must not get replaced), else as base64."""
    try:
        text = row["payload"].decode()
        row["payload"] = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    except UnicodeDecodeError:
        row["payload"] = "base64:" + base64.b64encode(row["payload"]).decode()
    return row


@command.command()
@selection
@JSON_OPTION
def replay(since: Any, code: Any, route: Any, key_name: Any, as_json: bool) -> None:
    """Send what was refused through validation and storage again, now that its cause is mended.

    What is stored, or was already, is no longer kept as rejected: it can be replayed once. The rest stays.
    """
    counts: Counter[str] = Counter()
    with connected() as connection:
        where = _where(since, code, route, key_name)
        position = {"after_at": "-infinity", "after_id": "00000000-0000-0000-0000-000000000000"}
        while True:
            connection.run("BEGIN")
            rows = query(connection, NEXT.format(where=where, limit=BATCH), **position)
            if not rows:
                connection.run("COMMIT")
                break
            _replay(connection, rows, counts)
            connection.run("COMMIT")
            position = {"after_at": rows[-1]["received_at"], "after_id": rows[-1]["rejected_id"]}
    answer: Row = {name: counts.pop(name, 0) for name in ("stored", "duplicates")}
    still = dict(sorted(counts.items()))
    show(answer | {"still_rejected": sum(still.values())} | still, as_json=as_json, title="replayed")


def _replay(connection: Any, rows: list[Row], counts: Counter[str]) -> None:
    from metrics_ingest.storage.lane import execute_blocking
    from metrics_ingest.storage.operations import Operation

    sound: list[tuple[Row, Any]] = []
    for row in rows:
        metric, reason = _metric(row)
        if metric is None:
            counts[reason] += 1
        else:
            sound.append((row, metric))
    if not sound:
        return
    outcomes = execute_blocking(connection, Operation.STORE_METRICS, [metric for _, metric in sound])
    done = dict(enumerate(row for row, _ in sound))
    counts["stored"] += len(sound)
    for outcome in outcomes:
        if outcome.kind == "duplicate":
            counts["duplicates"] += 1
            counts["stored"] -= 1
        elif done.pop(outcome.position, None):
            counts[outcome.kind] += 1
            counts["stored"] -= 1
    columns = {
        "at": [row["received_at"] for row in done.values()],
        "ids": [row["rejected_id"] for row in done.values()],
    }
    connection.run(DELETE, **columns)


def _metric(row: Row) -> tuple[Any, str]:
    """The metric of a row as it is stored, or None and the code of what is wrong with it still."""
    from metrics_ingest.errors import RequestRefused
    from metrics_ingest.model import metric as model

    if row["payload_bytes"] > len(row["payload"]):
        return None, "payload_too_large"
    try:
        metric = model.read(row["payload"])
    except RequestRefused as error:
        return None, error.code
    if row["metric_id"]:  # the identity that the sender was told
        metric.setdefault("metric_id", row["metric_id"])
    (complete,), faults = model.complete([metric], (0,), str(row["rejected_id"]), SKEW_S)
    return (None, faults[0][0].code) if faults else (complete, "")
