"""`metrics-ingest rejected`: count, list and replay the rejected metrics that the functions keep (quarantine.py)."""

import base64
from collections import Counter
from collections.abc import Callable
from typing import Any

import click

from metrics_ingest.admin.console import JSON_OPTION, Record, print_record, print_rows, time
from metrics_ingest.admin.database import open_connection, query, transaction, where
from metrics_ingest.errors import RequestRefused
from metrics_ingest.model import metric as model
from metrics_ingest.storage.lane import execute_blocking
from metrics_ingest.storage.operations import Operation

BATCH = 1_000
MAX_FUTURE_SKEW_S = 86_400  # the functions' default of the setting of that name

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
# The rows of a replay stay locked until its transaction ends; a second replay skips them.
NEXT = """
    SELECT rejected_id, received_at, codes, metric_id, payload, payload_bytes FROM rejected_metrics
    {where} AND (received_at, rejected_id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid))
    ORDER BY received_at, rejected_id LIMIT {limit} FOR UPDATE SKIP LOCKED
"""
DELETE = """
    DELETE FROM rejected_metrics USING unnest(CAST(:at AS timestamptz[]), CAST(:ids AS uuid[])) AS done (at, id)
    WHERE received_at = done.at AND rejected_id = done.id
"""
# The options that select rejected metrics: the condition on its value, type and help of each.
SELECTION = {
    "since": ("received_at >= {}::timestamptz", time, "Only metrics rejected at or after this time."),
    "code": ("{} = ANY (codes)", str, "Only metrics rejected with this error code."),
    "route": ("route = {}", str, "Only metrics sent to this function: ingest, ingest_batch or ingest_otlp."),
    "key": ("key_name = {}", str, "Only metrics sent with the API key of this name."),
}


def selection(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of SELECTION to a command."""
    for name, (_, kind, text) in reversed(SELECTION.items()):
        command = click.option(f"--{name}", type=kind, help=text)(command)
    return command


def _where(options: Record) -> str:
    return where({SELECTION[name][0]: value for name, value in options.items()})


@click.group()
def command() -> None:
    """Count, list and replay the metrics that ingest, ingest_batch and ingest_otlp rejected.

    The functions keep rejected metrics unless KEEP_REJECTED is false: at most 8 KiB of each, and a limited number per
    second. `partitions maintain` drops them after three months.
    """


@command.command(short_help="Count rejected metrics by error code.")
@selection
@JSON_OPTION
def summary(as_json: bool, **options: Any) -> None:
    """Count rejected metrics by error code, function and API key, with an example of each."""
    with open_connection() as connection:
        print_rows(query(connection, SUMMARY.format(where=_where(options))), as_json=as_json, title="rejected metrics")


@command.command("list", short_help="List rejected metrics as they were sent.")
@selection
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="List at most this many.")
@JSON_OPTION
def list_rejected(limit: int, as_json: bool, **options: Any) -> None:
    """List rejected metrics as they were sent, the oldest first."""
    with open_connection() as connection:
        rows = query(connection, LIST.format(where=_where(options), limit=limit))
    for row in rows:
        row["payload"] = _printable(row["payload"])
    print_rows(rows, as_json=as_json, title="rejected metrics")


def _printable(payload: bytes) -> str:
    """Return UTF-8 as text, without control characters, which could change the terminal; other bytes as base64."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(payload).decode()
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@command.command(short_help="Store rejected metrics whose error is fixed.")
@selection
@JSON_OPTION
def replay(as_json: bool, **options: Any) -> None:
    """Validate and store rejected metrics again, for example after a missing metric type was added.

    What is stored now, or was stored before (`duplicates`), is removed from the rejected metrics. The rest stays there.
    """
    counts: Counter[str] = Counter()
    after = {"after_at": "-infinity", "after_id": "00000000-0000-0000-0000-000000000000"}
    rows: list[Record] = [{}]
    with open_connection() as connection:
        while rows:
            with transaction(connection):
                rows = query(connection, NEXT.format(where=_where(options), limit=BATCH), **after)
                _replay(connection, rows, counts)
            if rows:
                after = {"after_at": rows[-1]["received_at"], "after_id": rows[-1]["rejected_id"]}
    result: Record = {name: counts.pop(name, 0) for name in ("stored", "duplicates")}
    by_code = dict(sorted(counts.items()))
    print_record(result | {"still_rejected": sum(by_code.values())} | by_code, as_json=as_json, title="replayed")


def _replay(connection: Any, rows: list[Record], counts: Counter[str]) -> None:
    """Store the valid metrics of the rows and delete their rows; count the outcomes."""
    metrics: list[Any] = []
    done: dict[int, Record] = {}  # rows by the position of their metric
    for row in rows:
        metric, code = _read(row)
        if metric is None:
            counts[code] += 1
        else:
            done[len(metrics)] = row
            metrics.append(metric)
    if not metrics:
        return
    for outcome in execute_blocking(connection, Operation.STORE_METRICS, metrics):
        if outcome.kind == "duplicate":
            counts["duplicates"] += 1
            counts["stored"] -= 1
        elif done.pop(outcome.position, None):
            counts[outcome.kind] += 1
    counts["stored"] += len(done)
    stored = {"at": [row["received_at"] for row in done.values()], "ids": [row["rejected_id"] for row in done.values()]}
    connection.run(DELETE, **stored)


def _read(row: Record) -> tuple[Any, str]:
    """Return the row's metric, ready to be stored, and ""; or None and the code of the first error."""
    if row["payload_bytes"] > len(row["payload"]):
        return None, "payload_too_large"  # only its beginning was kept
    try:
        metric = model.read(row["payload"])
    except RequestRefused as error:
        return None, error.code
    if row["metric_id"]:  # the identity in the reply to the sender, who may send the metric again with it
        metric.setdefault("metric_id", row["metric_id"])
    (complete,), faults = model.complete([metric], (0,), str(row["rejected_id"]), MAX_FUTURE_SKEW_S)
    return (None, faults[0][0].code) if faults else (complete, "")
