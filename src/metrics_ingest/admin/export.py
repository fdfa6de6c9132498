"""`metrics-ingest export`: the metrics of a time range, as COPY gives them, in the memory of one message."""

import os
import sys
from datetime import datetime
from typing import IO, Any

import click

from metrics_ingest.admin.console import INSTANT, connected

COLUMNS = "user_id, metric_type, value, timestamp, session_id, metric_id"
TIMESTAMP = """to_char(timestamp, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS timestamp"""  # the session's zone is UTC
# Built of the constants above only. COPY takes no parameters: what the caller chooses is quoted by pg8000 (`literal`).
# JSON has no control characters, so CSV with two of them for quote and delimiter writes each line as it is.
FORMATS = {
    "ndjson": (f"SELECT row_to_json(m) FROM (SELECT {COLUMNS} FROM metrics {{where}}) AS m",  # noqa: S608
               r"FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02'"),
    "csv": (f"SELECT {COLUMNS.replace('timestamp', TIMESTAMP)} FROM metrics {{where}}", "FORMAT csv, HEADER"),  # noqa: S608
}  # fmt: skip


@click.command()
@click.option("--from", "start", type=INSTANT, help="The first moment. [default: the beginning]")
@click.option("--to", "end", type=INSTANT, help="The moment before which it ends. [default: no end]")
@click.option("--user", type=click.UUID, help="Of this user only.")
@click.option("--type", "metric_type", help="Of this metric type only.")
@click.option("--format", "form", default="ndjson", show_default=True, type=click.Choice(list(FORMATS)))
@click.option("-o", "--output", type=click.File("wb"), default="-", help="[default: standard output]")
def command(
    start: datetime | None, end: datetime | None, user: Any, metric_type: str | None, form: str, output: IO[bytes]
) -> None:
    """Write metrics as NDJSON or CSV, which `load` takes back: in no order, all as of one moment."""
    from pg8000.native import literal

    conditions = {
        "timestamp >= {}::timestamptz": start,
        "timestamp < {}::timestamptz": end,
        "user_id = {}::uuid": user,
        "metric_type = {}": metric_type,
    }
    said = [text.format(literal(value)) for text, value in conditions.items() if value is not None]
    query, options = FORMATS[form]
    where = f"WHERE {' AND '.join(said)}" if said else ""
    with connected() as connection:
        try:
            connection.run(f"COPY ({query.format(where=where)}) TO STDOUT ({options})", stream=output)
            output.flush()
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        count = connection.row_count
    click.echo(f"{count:,} metrics", err=True)
