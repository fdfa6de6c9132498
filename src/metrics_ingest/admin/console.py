"""The terminal side of the commands: shared options, errors, and output for people and for scripts.

Exit codes: 0 done, 1 not done for the reason in the message (click.ClickException), 2 wrong usage, 3 the database or
the function cannot be reached, 130 interrupted.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
Record = dict[str, Any]


class Unreachable(click.ClickException):
    """The database or the function does not answer."""

    exit_code = 3


def confirm(question: str) -> None:
    """Ask on standard error. Raise ClickException, which names --yes, for any other answer than yes."""
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort:
        raise click.ClickException("not confirmed, nothing was changed; --yes does it without a question") from None


def parse_time(text: str) -> datetime:
    """Parse an option's date or time (RFC 3339). Raise click.BadParameter for other text."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no date or time like 2024-08-01 or 2024-08-08T12:34:56Z") from None


def printable(text: str, replacement: str = " ") -> str:
    """Replace control characters, which could change the terminal."""
    return "".join(c if c.isprintable() else replacement for c in text)


def print_record(record: Record, *, as_json: bool, title: str) -> None:
    """Print one object: as JSON, or a line for each field."""
    if as_json:
        _print_json(record)
        return
    click.secho(title, bold=True)
    width = max(map(len, record))
    for name, value in record.items():
        click.echo(f"  {name.replace('_', ' '):{width}}  {_cell(value)}".rstrip())


def print_rows(rows: list[Record], *, as_json: bool, title: str, columns: Sequence[str] = ()) -> None:
    """Print objects with the same fields: as JSON, or as a table of all columns or of those named.

    On a terminal that is too narrow for the table, print each object on its own, as psql does in expanded mode.
    """
    if as_json:
        _print_json(rows)
        return
    if not rows:
        click.echo(f"no {title}")
        return
    names = columns or tuple(rows[0])
    lines = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sys.stdout.isatty():
        if sum(widths) + 2 * len(widths) - 2 > shutil.get_terminal_size().columns:
            for number, row in enumerate(rows, 1):
                print_record(row, as_json=False, title=f"{title}, {number} of {len(rows)}")
            return
        lines.insert(1, ["─" * width for width in widths])
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    for line in lines:
        cells = zip(line, widths, numeric, strict=True)
        click.echo(
            "  ".join(f"{text:>{width}}" if right else f"{text:{width}}" for text, width, right in cells).rstrip()
        )


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, default=lambda item: _format_time(item) if isinstance(item, datetime) else str(item)))


def _cell(value: object) -> str:
    """Format a value for people; times to the second."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else _number(value)
    if isinstance(value, datetime):
        return _format_time(value.replace(microsecond=0))
    if isinstance(value, timedelta):
        return str(timedelta(seconds=round(value.total_seconds())))
    return ", ".join(map(str, value)) if isinstance(value, list) else str("" if value is None else value)


def _number(value: float) -> str:
    """Format a number as people write it: 2,307.71, 60, -0.5; very large and small ones with an exponent."""
    if value and not 0.001 <= abs(value) < 1e15:
        return f"{value:g}"
    digits = 2 if abs(value) >= 10 else 4
    return f"{value:,.{digits}f}".rstrip("0").rstrip(".")


def _format_time(value: datetime) -> str:
    """Format a time as RFC 3339 in UTC; midnight as a date."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z").removesuffix("T00:00:00Z")
