"""`metrics-ingest rejected`: count, list and replay the rejected metrics that the functions keep (quarantine.py)."""

import base64
from collections import Counter
from collections.abc import Callable
from typing import Any

import click

from metrics_ingest.admin.console import JSON_OPTION, Record, parse_time, print_record, print_rows, printable
from metrics_ingest.admin.database import open_connection, query, transaction, where
from metrics_ingest.storage.quarantine import FIRST, Kept, replay_after

# All that were rejected are counted by day and by the code of their first fault; those that were kept have a row each,
# whose detail is that of the first code.
SUMMARY = """
    WITH counted AS (
        SELECT code, route, key_name, CAST(sum(rejected) AS bigint) AS rejected
        FROM rejected_counts {counted} GROUP BY code, route, key_name),
    kept AS (
        SELECT code, route, coalesce(key_name, '') AS key_name, count(*) AS kept, min(received_at) AS first_at,
               max(received_at) AS last_at, array_agg(DISTINCT detail) FILTER (WHERE code = codes[1]) AS details
        FROM rejected_metrics, unnest(codes) AS code {kept} GROUP BY code, route, coalesce(key_name, ''))
    SELECT code, array_to_string(details[:3], ' | ') AS example, route, key_name,
           greatest(rejected, kept) AS rejected, coalesce(kept, 0) AS kept, first_at, last_at
    FROM counted FULL JOIN kept USING (code, route, key_name)
    ORDER BY rejected DESC, code, route, key_name
"""
LIST = """
    SELECT rejected_id, received_at, route, key_name, codes, detail, metric_id, keyed, payload, payload_bytes
    FROM rejected_metrics {where} ORDER BY received_at, rejected_id LIMIT {limit}
"""
# The options that select rejected metrics: the condition on its value, type and help of each.
SELECTION = {
    "since": ("received_at >= {}::timestamptz", parse_time, "Only metrics rejected at or after this time."),
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


def _where_counted(options: Record) -> str:
    """The same for rejected_counts, which has whole days in UTC."""
    conditions = {"since": "day >= ({}::timestamptz AT TIME ZONE 'UTC')::date", "code": "code = {}"}
    return where({conditions.get(name, SELECTION[name][0]): value for name, value in options.items()})


@click.group()
def command() -> None:
    """Count, list and replay the metrics that ingest, ingest_batch and ingest_otlp rejected.

    The functions keep rejected metrics unless KEEP_REJECTED is false: at most 8 KiB of each, and a limited number per
    second, but they count all. `partitions maintain` drops them after three months.
    """


@command.command(short_help="Count rejected metrics by error code.")
@selection
@JSON_OPTION
def summary(as_json: bool, **options: Any) -> None:
    """Count rejected metrics by error code, function and API key, with an example of each.

    `rejected` are all that were refused, `kept` those that can be listed and replayed: REJECTED_PER_S and
    REJECTED_BURST limit how many a function keeps.
    """
    sql = SUMMARY.format(kept=_where(options), counted=_where_counted(options))
    with open_connection() as connection:
        rows = query(connection, sql)
    print_rows(rows, as_json=as_json, title="rejected metrics")
    lost = sum(row["rejected"] - row["kept"] for row in rows)
    if lost > 0:
        click.echo(f"{lost:,} of them cannot be replayed: they were not kept, or are replayed already", err=True)


@command.command("list", short_help="List rejected metrics as they were sent.")
@selection
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="List at most this many.")
@JSON_OPTION
def list_rejected(limit: int, as_json: bool, **options: Any) -> None:
    """List rejected metrics as they were sent, the oldest first."""
    with open_connection() as connection:
        rows = query(connection, LIST.format(where=_where(options), limit=limit))
    for row in rows:
        row["payload"] = _text(row["payload"])
    print_rows(rows, as_json=as_json, title="rejected metrics")


def _text(payload: bytes) -> str:
    """Return UTF-8 as text, without control characters, which could change the terminal; other bytes as base64."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(payload).decode()
    return printable(text, "\N{REPLACEMENT CHARACTER}")


@command.command(short_help="Store rejected metrics whose error is fixed.")
@selection
@click.option("--force", is_flag=True, help="Also metrics whose sender has no identity of them: see above.")
@JSON_OPTION
def replay(force: bool, as_json: bool, **options: Any) -> None:
    """Validate and store rejected metrics again, for example after a missing metric type was added.

    What is stored now, or was stored before (`duplicates`), is removed from the rejected metrics. The rest stays there.

    A metric that was sent without metric_id and Idempotency-Key is stored only with --force (until then it counts as
    `needs_force`), because if its sender has sent it again since, it is stored twice.
    """
    counts: Counter[str] = Counter()
    last: Kept | None = FIRST
    with open_connection() as connection:
        while last:
            with transaction(connection):
                last = replay_after(connection, last, _where(options), counts, force=force)
    result = {name: counts.pop(name, 0) for name in ("stored", "duplicates")}
    by_code = dict(sorted(counts.items()))
    print_record(result | {"still_rejected": sum(by_code.values())} | by_code, as_json=as_json, title="replayed")
