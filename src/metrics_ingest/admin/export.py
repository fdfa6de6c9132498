"""`metrics-ingest export`: write metrics to a file, streamed by COPY, so that memory does not grow with the rows."""

import os
import sys
from contextlib import suppress
from datetime import datetime
from typing import IO, Any

import click

from metrics_ingest.admin.console import parse_time
from metrics_ingest.admin.database import open_connection, where

COLUMNS = "user_id, metric_type, value, timestamp, session_id, metric_id"
TIMESTAMP = """to_char(timestamp, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS timestamp"""  # the connection is in UTC
# row_to_json writes -0, which JSON parsers read as the integer 0.
VALUE = "CASE WHEN value = 0 AND value::text = '-0' THEN '-0.0'::json ELSE to_json(value) END AS value"
# Query and COPY options of each format. JSON contains no control characters, so COPY's CSV with two of them as quote
# and delimiter writes each line unchanged.
FORMATS = {
    "ndjson": (f"SELECT row_to_json(m) FROM (SELECT {COLUMNS.replace('value', VALUE)} FROM metrics {{where}}) AS m",  # noqa: S608  # constants
               r"FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02'"),
    "csv": (f"SELECT {COLUMNS.replace('timestamp', TIMESTAMP)} FROM metrics {{where}}",  # noqa: S608  # constants
            "FORMAT csv, HEADER"),
}  # fmt: skip


@click.command()
@click.option("--from", "start", type=parse_time, help="Export metrics at or after this time. [default: all]")
@click.option("--to", "end", type=parse_time, help="Export metrics before this time. [default: all]")
@click.option("--user", type=click.UUID, help="Export the metrics of this user only.")
@click.option("--type", "metric_type", help="Export the metrics of this type only.")
@click.option("--format", "form", default="ndjson", show_default=True, type=click.Choice(list(FORMATS)))
@click.option("-o", "--output", type=click.File("wb"), default="-", help="[default: standard output]")
def command(
    start: datetime | None, end: datetime | None, user: Any, metric_type: str | None, form: str, output: IO[bytes]
) -> None:
    """Write metrics as NDJSON or CSV, which `load` reads.

    All are from one snapshot of the database, in no defined order. TIME is like 2024-08-01 or 2024-08-08T12:34:56Z.
    """
    query, options = FORMATS[form]
    condition = where({"timestamp >= {}::timestamptz": start, "timestamp < {}::timestamptz": end,
                       "user_id = {}::uuid": user, "metric_type = {}": metric_type})  # fmt: skip
    with open_connection() as connection:
        try:
            connection.run(f"COPY ({query.format(where=condition)}) TO STDOUT ({options})", stream=output)
            output.flush()
        except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe: that is no failure
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:
            with suppress(OSError):  # it cannot write the rest either
                output.close()
            raise click.ClickException(f"cannot write {output.name}: {error.strerror}") from error
        count = connection.row_count
    click.echo(f"{count:,} metrics", err=True)
