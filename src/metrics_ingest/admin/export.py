"""`metrics-ingest export`: write metrics to a file, streamed by COPY, so that memory does not grow with the rows."""

import os
import sys
from contextlib import suppress
from datetime import datetime
from typing import IO, Any

import click

from metrics_ingest.admin.console import parse_time
from metrics_ingest.admin.database import CONNECTION_BROKEN, open_connection, where
from metrics_ingest.admin.metric_types import require_type

COLUMNS = "user_id, metric_type, value, timestamp, session_id, metric_id"
TIMESTAMP = """to_char(timestamp, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS timestamp"""  # the connection is in UTC
# format is faster than row_to_json, and than json_build_object. Ids and types have no character that JSON escapes, and
# values are finite. JSON parsers read -0 as the integer 0.
LINE = (
    '{{"user_id":"%s","metric_type":"%s","value":%s,"timestamp":%s,"session_id":"%s","metric_id":"%s"}}',
    "user_id, metric_type, CASE WHEN value = 0 AND value::text = '-0' THEN '-0.0' ELSE value::text END,"
    " to_json(timestamp), session_id, metric_id",
)
QUERIES = {
    "ndjson": f"SELECT format('{LINE[0]}', {LINE[1]}) FROM metrics {{where}}",  # noqa: S608  # `where` quotes its values; the rest is constants of this module
    "csv": f"SELECT {COLUMNS.replace('timestamp', TIMESTAMP)} FROM metrics {{where}}",  # noqa: S608  # `where` quotes its values; the rest is constants of this module
}
# COPY's options of each format. JSON contains no control characters, so CSV with two of them as quote and delimiter has
# each line unchanged.
OPTIONS = {"ndjson": r"FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02'", "csv": "FORMAT csv, HEADER"}


@click.command()
@click.option("--from", "start", type=parse_time, help="Export metrics at or after this time. [default: all]")
@click.option("--to", "end", type=parse_time, help="Export metrics before this time. [default: all]")
@click.option("--user", type=click.UUID, help="Export the metrics of this user only.")
@click.option("--type", "metric_type", help="Export the metrics of this type only.")
@click.option("--format", "form", default="ndjson", show_default=True, type=click.Choice(list(OPTIONS)))
@click.option("-o", "--output", type=click.File("wb"), default="-", help="[default: standard output]")
def command(
    start: datetime | None, end: datetime | None, user: Any, metric_type: str | None, form: str, output: IO[bytes]
) -> None:
    """Write metrics as NDJSON or CSV, which `load` reads.

    All are from one snapshot of the database, in no defined order. TIME is like 2024-08-01 or 2024-08-08T12:34:56Z.
    """
    condition = where({"timestamp >= {}::timestamptz": start, "timestamp < {}::timestamptz": end,
                       "user_id = {}::uuid": user, "metric_type = {}": metric_type})  # fmt: skip
    if metric_type:
        with open_connection() as connection:
            require_type(connection, metric_type)
    count = copy_out(QUERIES[form].format(where=condition), form, output)
    click.echo(f"{count:,} metrics", err=True)


def copy_out(query: str, form: str, output: IO[bytes]) -> int:
    """Write the rows of a query to a file, in a format of OPTIONS; return how many. Raise ClickException."""
    with open_connection() as connection:
        try:
            connection.run(f"COPY ({query}) TO STDOUT ({OPTIONS[form]})", stream=output)
            output.flush()
        except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe: that is no failure
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except CONNECTION_BROKEN:
            raise
        except OSError as error:
            with suppress(OSError):  # it cannot write the rest either
                output.close()
            raise click.ClickException(f"cannot write {output.name}: {error.strerror}") from error
        return int(connection.row_count)
